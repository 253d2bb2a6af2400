"""What a word is, decided character by character, and what that makes of every token.

A word is a run of letters, digits and their marks of any script (not ² or ½); an apostrophe, an
underscore or a zero-width joiner belongs to it where letters stand on both sides ("don't",
`foo_bar`). A hyphen ends a word: the parts of "well-known" are words, as on a phone keyboard. An
emoji is a word of its own, with its modifiers. Scripts without spaces are not segmented: a run of
kanji is one word.
"""

import codecs
import unicodedata
from bisect import bisect_left
from enum import IntEnum
from functools import cache, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bluejay.vocab.tokenizer import Tokenizer


class State(IntEnum):
    """Where reading stands. STOP: the character cannot continue what came before it."""

    GAP = 0  # no character of the word yet, only white space
    WORD = 1
    WORD_JOINER = 2  # after an apostrophe: it belongs to the word if a letter follows
    EMOJI = 3
    EMOJI_JOINER = 4
    HALF_FLAG = 5  # a flag is two regional indicators
    STOP = 6


# Kinds of characters: space, letter or digit, mark, apostrophe, zero-width joiner, emoji, skin
# tone, regional indicator, anything else; the last stands for a character not yet complete.
_SPACE, _LETTER, _MARK, _APOSTROPHE, _JOINER = " ", "a", "m", "'", "j"
_EMOJI, _TONE, _REGIONAL, _OTHER, _INCOMPLETE = "e", "t", "r", ".", "~"

_MOVES = {
    State.GAP: {
        _SPACE: State.GAP,
        _LETTER: State.WORD,
        _EMOJI: State.EMOJI,
        _TONE: State.EMOJI,
        _REGIONAL: State.HALF_FLAG,
    },
    State.WORD: {
        _LETTER: State.WORD,
        _MARK: State.WORD,
        _APOSTROPHE: State.WORD_JOINER,
        _JOINER: State.WORD_JOINER,
    },
    State.WORD_JOINER: {_LETTER: State.WORD},
    State.EMOJI: {_MARK: State.EMOJI, _TONE: State.EMOJI, _JOINER: State.EMOJI_JOINER},
    State.EMOJI_JOINER: {_EMOJI: State.EMOJI},
    State.HALF_FLAG: {_REGIONAL: State.EMOJI},
}
_COMPLETE = frozenset([State.WORD, State.EMOJI])


@cache
def _kind(char: str) -> str:
    code = ord(char)
    if char.isspace():
        return _SPACE
    if char in "'’_":
        return _APOSTROPHE
    if code in (0x200C, 0x200D):
        return _JOINER
    if 0x1F3FB <= code <= 0x1F3FF:
        return _TONE
    if 0x1F1E6 <= code <= 0x1F1FF:
        return _REGIONAL
    category = unicodedata.category(char)
    if category[0] == "L" or category == "Nl" or char.isdecimal():
        return _LETTER
    if category[0] == "M":
        return _MARK
    # Below U+2600 symbols are signs (©, °, arrows, boxes); U+FFFD stands for bytes that are none.
    return _EMOJI if category == "So" and code >= 0x2600 and code != 0xFFFD else _OTHER


def shape_of(data: bytes) -> str:
    """The kinds of the characters in UTF-8 data, one letter each."""
    try:
        return "".join(map(_kind, data.decode()))
    except UnicodeDecodeError:
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        shape = "".join(map(_kind, decoder.decode(data)))
        return shape + (_INCOMPLETE if decoder.getstate()[0] else "")


def incomplete_end(data: bytes) -> bytes:
    """The bytes at the end that are the beginning of a character."""
    if data.isascii():
        return b""
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    decoder.decode(data)
    held: bytes = decoder.getstate()[0]
    return held


@cache
def read(state: State, shape: str) -> tuple[State, int]:
    """The state after these characters, and how many of them a word surely has used (0: none).

    What follows a STOP is not read.
    """
    used = 0
    for number, kind in enumerate(shape, start=1):
        if kind == _INCOMPLETE:
            break
        state = _MOVES[state].get(kind, State.STOP)
        if state == State.STOP:
            break
        if state in _COMPLETE:
            used = number
    return state, used


class LastWord(NamedTuple):
    """The word at the very end of a text, if there is one, and where it begins."""

    state: State
    begin: int
    text: str


def last_word(text: str) -> LastWord:
    """The word that a text ends with; empty after white space and punctuation."""
    state, begin = State.GAP, len(text)
    shape = "".join(map(_kind, text))
    for position in range(shape.rfind(_SPACE) + 1, len(text)):
        moved = _MOVES[state].get(shape[position], State.STOP)
        if moved == State.STOP:
            moved = _MOVES[State.GAP].get(shape[position], State.GAP)
            begin = position
        elif state == State.GAP:
            begin = position
        state = moved
    if state == State.GAP:
        begin = len(text)
    return LastWord(state, begin, text[begin:])


_NO_TABLES = np.empty(0, np.int8), np.empty(0, np.int16)
# Of the last typed words; " " of 49,152 tokens takes 0.3 MB, most take next to nothing.
_KEPT_COVERINGS = 64


class TokenWords:
    """Every token of a vocabulary as a shape. Few shapes are different, and each is read once."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._numbers: dict[str, int] = {}
        # Shapes get numbers and keep them, so what was read of them stays right.
        self._tables: dict[State, tuple[NDArray[np.int8], NDArray[np.int16]]] = {}
        self._covering: dict[bytes, tuple[list[int], NDArray[np.int32], NDArray[np.int32]]] = {}
        special = tokenizer.special_ids
        self.token_bytes = [
            b"" if data is None or token in special else data
            for token, data in enumerate(tokenizer.token_bytes_table())
        ]
        # A special token is no text, so it ends every word.
        self._shapes = np.asarray(
            [self._number(shape_of(data) if data else _OTHER) for data in self.token_bytes],
            np.int32,
        )
        self._sorted = sorted(range(len(self.token_bytes)), key=self.token_bytes.__getitem__)
        self._continuing = [i for i, data in enumerate(self.token_bytes) if data[:1] in _INNER]

    def following(self, begun: bytes) -> NDArray[np.int32]:
        """The shape number of every token, where it follows the first bytes of a character.

        A token that does not go on with that character leaves it broken.
        """
        if not begun:
            return self._shapes
        shapes = np.full(len(self._shapes), self._number(_OTHER), np.int32)
        for token in self._continuing:
            shapes[token] = self._number(shape_of(begun + self.token_bytes[token]))
        return shapes

    def covering(self, typed: bytes) -> tuple[list[int], NDArray[np.int32], NDArray[np.int32]]:
        """Tokens that spell a part of `typed`; those that spell all of it, or go beyond; and the
        shape numbers of what these have beyond."""
        found = self._covering.get(typed)
        if found is None:
            found = self._covering[typed] = self._cover(typed)
            if len(self._covering) > _KEPT_COVERINGS:
                del self._covering[next(iter(self._covering))]
        return found

    def _cover(self, typed: bytes) -> tuple[list[int], NDArray[np.int32], NDArray[np.int32]]:
        parts = [i for n in range(1, len(typed)) for i in self._beginning(typed[:n], exactly=True)]
        ids = np.asarray(self._beginning(typed), np.int32)
        num_chars = _length(typed)
        if num_chars is None:
            beyond = [self.token_bytes[token][len(typed) :] for token in ids]
            return parts, ids, np.asarray([self._number(shape_of(x)) for x in beyond], np.int32)
        shapes, kinds = list(self._numbers), np.unique(self._shapes[ids], return_inverse=True)
        rests = [self._number(shapes[kind][num_chars:]) for kind in kinds[0].tolist()]
        return parts, ids, np.asarray(rests, np.int32)[kinds[1]]

    def _beginning(self, data: bytes, *, exactly: bool = False) -> list[int]:
        """The tokens whose bytes begin with these, or are just these."""
        after = data + b"\0" if exactly else _successor(data)
        begin = bisect_left(self._sorted, data, key=self.token_bytes.__getitem__)
        if after is None:
            return self._sorted[begin:]
        end = bisect_left(self._sorted, after, lo=begin, key=self.token_bytes.__getitem__)
        return self._sorted[begin:end]

    def read(
        self, state: State, shapes: NDArray[np.int32]
    ) -> tuple[NDArray[np.int8], NDArray[np.int16]]:
        """`read` of every shape number: states and numbers of characters used."""
        states, used = self._tables.get(state, _NO_TABLES)
        if len(states) < len(self._numbers):
            readings = [read(state, shape) for shape in list(self._numbers)]
            states = np.asarray([found for found, _ in readings], np.int8)
            used = np.asarray([count for _, count in readings], np.int16)
            self._tables[state] = states, used
        return states.take(shapes), used.take(shapes)

    def _number(self, shape: str) -> int:
        return self._numbers.setdefault(shape, len(self._numbers))


def _length(data: bytes) -> int | None:
    """The number of characters; None if the data begins or ends within one."""
    try:
        return len(data.decode())
    except UnicodeDecodeError:
        return None


def _successor(data: bytes) -> bytes | None:
    """The first bytes, in order, that do not begin with these; None if all later ones do."""
    stem = data.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else None


_INNER = frozenset(bytes([byte]) for byte in range(0x80, 0xC0))


@lru_cache(maxsize=4)
def token_words(tokenizer: Tokenizer) -> TokenWords:
    """The TokenWords of a tokenizer, made once (0.1 s for 50,000 tokens)."""
    return TokenWords(tokenizer)
