"""Turns one sample's ids into text while they come: the same text whole or in pieces.

Starts without JAX. Everybody who shows text that was generated writes it here, so what is streamed
and what comes at once cannot differ.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bluejay.generation.engine_requests import TokenScore
from bluejay.text.stop_strings import StopMatcher
from bluejay.vocab.detokenizer import IncrementalDetokenizer
from bluejay.vocab.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class WrittenToken:
    """A token and where it begins: `offset` is the character that its first byte belongs to,
    counted from 0. `is_shown` says whether the text has its bytes: not those of special tokens."""

    score: TokenScore
    offset: int
    is_shown: bool = True


@dataclass(frozen=True, kw_only=True)
class TextPiece:
    """Text that is certain, and the tokens that begin in it.

    A token comes with the piece that has its first character. One that is not shown comes with
    the text before it.
    """

    text: str = ""
    tokens: tuple[WrittenToken, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.text or self.tokens)

    def __add__(self, other: "TextPiece") -> "TextPiece":
        return TextPiece(text=self.text + other.text, tokens=self.tokens + other.tokens)

    @classmethod
    def joined(cls, pieces: Sequence["TextPiece"]) -> "TextPiece":
        """All of them, in order."""
        tokens = tuple(token for piece in pieces for token in piece.tokens)
        return cls(text="".join(piece.text for piece in pieces), tokens=tokens)


class SampleWriter:
    """One sample: whole characters, nothing of a stop string, nothing after it.

    The texts of all pieces add up to `tokenizer.decode(ids, skip_special=True)`, up to the first
    stop string. `num_tokens` ids were taken, none of them after the one that completed a stop
    string.
    """

    def __init__(self, tokenizer: Tokenizer, *, stops: Sequence[str] = ()) -> None:
        """UsageError for an empty stop string."""
        self._tokenizer = tokenizer
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._matcher = StopMatcher(stops)
        self._waiting: list[WrittenToken] = []
        self._num_passed = 0
        self.num_tokens = 0

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string is complete: the sample has ended."""
        return self._matcher.found is not None

    def write_prompt(self, scores: Iterable[TokenScore]) -> TextPiece:
        """Begin with a prompt: special tokens in it are shown, and stop strings do not count.

        The beginning of a character at its end waits for the new tokens.
        """
        return self._piece("".join(self._take(score) for score in scores))

    def write(self, scores: Iterable[TokenScore]) -> TextPiece:
        """New tokens; none are taken any more once a stop string is complete."""
        text = ""
        for score in scores:
            if self.is_stopped:
                break
            is_shown = score.id not in self._tokenizer.special_ids
            text += self._matcher.feed(self._take(score, is_shown=is_shown))
            self.num_tokens += 1
        return self._piece(text)

    def finish(self, end: TokenScore | None = None) -> TextPiece:
        """What was held back, now that the sample has ended; `end`, which ended it, comes last,
        unless a stop string ended it before. It is not counted."""
        text = ""
        if not self.is_stopped:
            text = self._matcher.feed(self._detokenizer.flush()) + self._matcher.flush()
        if end is not None and not self.is_stopped:
            offset = self._detokenizer.num_chars
            self._waiting.append(WrittenToken(score=end, offset=offset, is_shown=False))
        return self._piece(text)

    def _take(self, score: TokenScore, *, is_shown: bool = True) -> str:
        data = self._tokenizer.token_bytes(score.id) if is_shown else b""
        offset = self._detokenizer.num_chars
        if data:
            # Bytes held back become a character, or several if the next does not go on with them.
            begun = self._detokenizer.pending + data[:1]
            offset += len(begun.decode("utf-8", errors="replace")) - 1
        self._waiting.append(WrittenToken(score=score, offset=offset, is_shown=is_shown))
        return self._detokenizer.feed_bytes(data)

    def _piece(self, text: str) -> TextPiece:
        """`text` with the waiting tokens that have begun in what is certain now."""
        self._num_passed += len(text)
        num_ready = 0
        for token in self._waiting:
            if token.offset + token.is_shown > self._num_passed:
                break
            num_ready += 1
        ready = tuple(self._waiting[:num_ready])
        del self._waiting[:num_ready]
        return TextPiece(text=text, tokens=ready)
