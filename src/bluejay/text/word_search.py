"""Best-first search over the token paths that may follow a typed text.

A search asks and does not call: it is a generator of questions to a model, so that whoever runs
several of them may answer what they ask next in one call.
"""

import heapq
import unicodedata
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bluejay.core.errors import DataError
from bluejay.text.next_tokens import Asking, Branch, Start
from bluejay.text.typed_text import TypedText
from bluejay.text.words import State, TokenWords, incomplete_end

# Each keeps a key/value cache alive: 12 MB for SmolLM2, 235 MB for GPT-J-6B. Paths of more than
# one token are rare among the heavy ones, and a dropped one costs a call if it is needed again.
_KEPT_PREFIXES = 8

_SORTED_FIRST = 32
_STATES = tuple(State)

# Guesses weigh at least this share of the path that is asked for.
_LEAST_SHARE = 0.1

# While a path may still spell the typed text in another way, it counts as if it did and lowers
# every probability by its share of all mass.
_UNREAD_SHARE = 0.01


@dataclass(kw_only=True, slots=True, eq=False)
class Path:
    """Tokens after the head of the typed text, and what they spell.

    `mass` is their probability after the head. `uncovered` are the typed bytes they still have to
    spell, `text` those they spell beyond. `used` counts the bytes of `text` up to the last complete
    character of the word. An open path has spelled the typed word and nothing yet that ends it or
    goes on with it.
    """

    mass: float
    parent: "Path | None"
    token: int
    depth: int
    uncovered: bytes
    text: bytes
    used: int
    state: State
    is_open: bool
    prefix: Any = None


class _Choices(NamedTuple):
    """Tokens that may follow a path: ids, masses with the path's, shapes beyond the typed text."""

    path: Path
    ids: NDArray[np.int32]
    masses: NDArray[np.float64]
    shapes: NDArray[np.int32]

    def only(self, chosen: NDArray[np.bool_]) -> "_Choices":
        at = chosen.nonzero()[0]
        return _Choices(self.path, self.ids.take(at), self.masses.take(at), self.shapes.take(at))


def _is_ready(path: Path) -> bool:
    return path.prefix is None and path.parent is not None and path.parent.prefix is not None


def _heaviest_first(masses: NDArray[np.float64]) -> Iterator[int]:
    """Places by falling mass, among equal ones the first first. Mostly few are asked for, and to
    sort 49,152 takes 3 ms."""
    if len(masses) > 2 * _SORTED_FIRST:
        least = np.partition(masses, -_SORTED_FIRST)[-_SORTED_FIRST]
        heavy = np.flatnonzero(masses >= least)
        yield from heavy[np.argsort(-masses[heavy], kind="stable")].tolist()
        light = np.flatnonzero(masses < least)
    else:
        light = np.arange(len(masses))
    yield from light[np.argsort(-masses[light], kind="stable")].tolist()


def _folded(word: str) -> str:
    """Equal for spellings that look the same: composed or not, with either apostrophe."""
    return unicodedata.normalize("NFC", word).replace("’", "'")


class _Siblings:
    """Paths that come heaviest first."""

    def __init__(self, paths: Iterator[Path]) -> None:
        self._paths = paths
        self._seen: deque[Path] = deque()

    def take(self) -> Path | None:
        return self._seen.popleft() if self._seen else next(self._paths, None)

    def ahead(self, number: int) -> list[Path]:
        """The next ones, which stay."""
        self._seen.extend(islice(self._paths, max(0, number - len(self._seen))))
        return list(islice(self._seen, number))


class WordSearch:
    """The words after a typed text, with what has been found of their mass.

    After `run`, `found` has the mass of every word by what would be appended to the typed text,
    `total` is an upper bound of all mass, and `next_word` tells next words from completions.
    Where the model `reads_at_once` more than one path, questions name some that may be next.
    """

    def __init__(
        self,
        words: TokenWords,
        typed: TypedText,
        *,
        allowed: NDArray[np.bool_],
        longest_path: int,
        reads_at_once: int = 1,
    ) -> None:
        self.found: dict[str, dict[str, float]] = {}
        self.next_word: bool | None = None if typed.word else True
        self.num_calls = 0
        self._words, self._typed, self._reads_at_once = words, typed, reads_at_once
        self._allowed, self._longest_path = allowed, longest_path
        self._ids = np.arange(len(words.token_bytes), dtype=np.int32)
        self._kept: deque[Path] = deque()
        self._order = count()
        self._frontier: list[tuple[float, int, Path, _Siblings]] = []
        # No path below this mass is asked for any more.
        self._least_mass = 0.0
        self._given_up: list[Path] = []
        # Mass of typed text spelled in full; of its word then ended; of its word gone on with.
        self._covered, self._ended, self._continued = (0.0 if typed.tail else 1.0), 0.0, 0.0
        self._undecided: list[tuple[_Choices, _Choices]] = []
        root = Path(
            mass=1.0,
            parent=None,
            token=-1,
            depth=0,
            uncovered=typed.tail,
            text=b"",
            used=0,
            state=typed.state,
            is_open=bool(typed.word),
        )
        self._push(iter([root]))

    def run(self, *, num_words: int, least: float, max_calls: int | None) -> Asking[None]:
        """Explore until no path left weighs as much as the last of `num_words` words or the share
        `least` of all, or the calls are used up; with None until no path is left."""
        while True:
            spent = max_calls is not None and self.num_calls >= max_calls
            if self.next_word is None:
                self._decide(by_force=spent or not self._frontier)
            if spent or not self._frontier:
                return
            if max_calls is not None and self._is_settled(num_words, least):
                return
            yield from self._expand_heaviest()

    @property
    def total(self) -> float:
        """Mass of all that can follow, in the reading that was decided for: of the typed word being
        complete, or of the typed text. What is not explored counts as if it did."""
        left = [*self._given_up, *(path for _, _, path, _ in self._frontier)]
        uncovered = sum(path.mass for path in left if path.uncovered)
        if self.next_word and self._typed.word:
            open_mass = sum(path.mass for path in left if path.is_open and not path.uncovered)
            return self._ended + open_mass + uncovered
        return self._covered + uncovered

    def _is_settled(self, num_words: int, least: float) -> bool:
        if self.next_word is None:
            return False
        heaviest, total = -self._frontier[0][0], self.total
        self._least_mass = least * total
        if heaviest <= self._least_mass:
            return True
        unread = [p.mass for _, _, p, _ in self._frontier if p.is_open or p.uncovered]
        if max(unread, default=0.0) > _UNREAD_SHARE * total:
            return False
        masses = [sum(spellings.values()) for spellings in self.found.values()]
        return len(masses) >= num_words and heaviest <= heapq.nlargest(num_words, masses)[-1]

    def _decide(self, *, by_force: bool) -> None:
        """Next words if the typed word more likely ends here than goes on, else completions."""
        open_mass = sum(path.mass for _, _, path, _ in self._frontier)
        if by_force or abs(self._ended - self._continued) > open_mass:
            self.next_word = self._ended >= self._continued
            for ended, continued in self._undecided:
                self._take(ended, continued)

    def _expand_heaviest(self) -> Asking[None]:
        _, _, path, siblings = heapq.heappop(self._frontier)
        self._push_next(siblings)
        if path.depth >= self._longest_path:
            self._given_up.append(path)
            return
        masses = path.mass * (yield from self._next_probabilities(path))
        if path.uncovered:
            parts, ids, shapes = self._words.covering(path.uncovered)
            for child in self._partial_children(path, masses, parts):
                self._push(iter([child]))
            self._covered += float(masses[ids].sum())
        else:
            ids, shapes = self._ids, self._words.following(incomplete_end(path.text))
        choices = _Choices(path, ids, masses[ids], shapes)
        if path.is_open:
            self._split(choices)
        else:
            self._collect(choices, path.state)

    def _split(self, choices: _Choices) -> None:
        """Tell the tokens that end the typed word from those that go on with it."""
        states, used = self._words.read(choices.path.state, choices.shapes)
        ended = (states == State.STOP) & (used == 0)
        still_open = choices.only((states != State.STOP) & (used == 0))
        for child in self._children(still_open, choices.path.state, is_open=True):
            self._push(iter([child]))
        self._ended += float(choices.masses[ended].sum())
        self._continued += float(choices.masses[used > 0].sum())
        parts = choices.only(ended), choices.only(used > 0)
        if self.next_word is None:
            self._undecided.append(parts)
        else:
            self._take(*parts)

    def _take(self, ended: _Choices, continued: _Choices) -> None:
        path = ended.path
        if not self.next_word:
            self._collect(continued, path.state)
        elif path.text == incomplete_end(path.text):
            # Read the token that ended the word again, as the beginning of the next one. After an
            # apostrophe there is none.
            self._collect(ended, State.GAP)

    def _collect(self, choices: _Choices, state: State) -> None:
        """Credit the words that end with these tokens, and queue the others."""
        path = choices.path
        states, used = self._words.read(state, choices.shapes)
        stopped = states == State.STOP
        if path.used:
            self._credit(path.text[: path.used], choices.masses[stopped & (used == 0)].sum())
        inside = choices.only(stopped & (used > 0))
        for child in self._children(inside, state):
            self._credit(child.text[: child.used], child.mass)
        self._push(self._children(choices.only(~stopped), state))

    def _credit(self, spelled: bytes, mass: float) -> None:
        if mass > 0.0:
            appended = spelled.decode()
            spellings = self.found.setdefault(_folded(self.word(appended)), {})
            spellings[appended] = spellings.get(appended, 0.0) + float(mass)

    def word(self, appended: str) -> str:
        """The word that appending this to the typed text makes."""
        return appended.lstrip() if self.next_word else self._typed.word + appended

    def _children(
        self, choices: _Choices, state: State, *, is_open: bool = False
    ) -> Iterator[Path]:
        """The paths with one of these tokens more, heaviest first."""
        path = choices.path
        states, used = self._words.read(state, choices.shapes)
        before = b"" if path.uncovered else path.text
        complete = len(before) - len(incomplete_end(before))
        for index in _heaviest_first(choices.masses):
            token, mass = int(choices.ids[index]), float(choices.masses[index])
            if not mass > 0.0:
                return
            text = before + self._words.token_bytes[token][len(path.uncovered) :]
            characters = text[complete:].decode("utf-8", errors="replace")[: used[index]]
            yield Path(
                mass=mass,
                parent=path,
                token=token,
                depth=path.depth + 1,
                uncovered=b"",
                text=text,
                used=complete + len(characters.encode()) if used[index] else path.used,
                state=_STATES[states[index]],
                is_open=is_open,
            )

    def _partial_children(
        self, path: Path, masses: NDArray[np.float64], parts: list[int]
    ) -> Iterator[Path]:
        """The paths with one token more that still do not spell all of the typed text."""
        for token in parts:
            if masses[token] > 0.0:
                yield Path(
                    mass=float(masses[token]),
                    parent=path,
                    token=token,
                    depth=path.depth + 1,
                    uncovered=path.uncovered[len(self._words.token_bytes[token]) :],
                    text=b"",
                    used=0,
                    state=path.state,
                    is_open=path.is_open,
                )

    def _push(self, paths: Iterator[Path]) -> None:
        self._push_next(_Siblings(paths))

    def _push_next(self, paths: _Siblings) -> None:
        """Queue the first of some paths that come heaviest first; the others follow it."""
        path = paths.take()
        if path is not None:
            heapq.heappush(self._frontier, (-path.mass, next(self._order), path, paths))

    def _likely_next(self, path: Path) -> list[Path]:
        """Paths that are probably expanded soon after this one, of those whose parents are read."""
        found = []
        least = max(self._least_mass, _LEAST_SHARE * path.mass)
        most = self._reads_at_once - 1
        for _, _, first, siblings in heapq.nsmallest(most + 1, self._frontier):
            if first.mass > least:
                found += [first, *siblings.ahead(most - 1)]
        found = [other for other in found if other.mass > least and _is_ready(other)]
        return heapq.nlargest(most, found, key=lambda other: other.mass)

    def _next_probabilities(self, path: Path) -> Asking[NDArray[np.float64]]:
        prefix = yield from self._prefix(path)
        known: NDArray[np.float64] | None = getattr(prefix, "probabilities", None)
        if known is None:
            known = self._probabilities(np.asarray(prefix.logits), path.depth)
            if hasattr(prefix, "probabilities"):
                prefix.probabilities = known
        return known

    def _probabilities(self, raw: NDArray[Any], depth: int) -> NDArray[np.float64]:
        logits: NDArray[np.float64] = np.where(self._allowed, raw, -np.inf).astype(np.float64)
        largest = np.max(logits)
        if not np.isfinite(largest):
            raise DataError(
                f"The model gives {largest} as the largest logit after {depth} tokens of a "
                "continuation, so its weights are damaged: load them again from their source."
            )
        logits -= largest
        weights = np.exp(logits, out=logits)
        weights /= weights.sum()
        return weights

    def _prefix(self, path: Path) -> Asking[Any]:
        if path.prefix is None:
            self.num_calls += 1
            if path.parent is None:
                path.prefix = yield Start(self._typed.head, self._longest_path)
                return path.prefix
            before = yield from self._prefix(path.parent)
            path.prefix = yield Branch(self._wanted(before, path))
            self._kept.append(path)
            if len(self._kept) > _KEPT_PREFIXES:
                self._kept.popleft().prefix = None
        return path.prefix

    def _wanted(self, before: Any, path: Path) -> list[tuple[Any, int]]:
        wanted = [(before, path.token)]
        if self._reads_at_once > 1:
            for other in self._likely_next(path):
                assert other.parent is not None
                wanted.append((other.parent.prefix, other.token))
        return wanted
