"""Drafts from the text itself: what followed the last time the same ids stood there.

After prompt lookup (Saxena 2023) and its kin. No JAX.
"""

from collections.abc import Iterable
from typing import Final

SHORTEST: Final = 2
LONGEST: Final = 8


class SuffixIndex:
    """For the end of a growing text the most recent earlier place of its longest known suffix.

    Suffixes of 2 to 8 ids are looked up; a match that goes on grows beyond that. An id costs seven
    look-ups, whatever the length of the text.
    """

    def __init__(self, ids: Iterable[int] = ()) -> None:
        self._ids: list[int] = []
        self._ends: dict[tuple[int, ...], int] = {}
        self._end = 0
        self.match_length = 0  # ids; 0 when nothing matches
        self.extend(ids)

    def __len__(self) -> int:
        return len(self._ids)

    def extend(self, ids: Iterable[int]) -> None:
        """The text goes on with these ids."""
        for token in ids:
            self._append(token)

    def proposal(self, count: int) -> list[int]:
        """What may come next, `count` ids or none: what followed the match, and where that runs
        into the end of the text, the same over again."""
        if not self.match_length:
            return []
        period = len(self._ids) - self._end
        if count <= period:
            return self._ids[self._end : self._end + count]
        cycle = self._ids[self._end :]
        return [cycle[number % period] for number in range(count)]

    def _append(self, token: int) -> None:
        grows = bool(self.match_length) and self._ids[self._end] == token
        grown = (self.match_length + 1, self._end + 1) if grows else (0, 0)
        self._ids.append(token)
        found = self._look_up()
        # A match longer than all that is looked up is kept: it is the longer one.
        self.match_length, self._end = grown if grown[0] > LONGEST else found

    def _look_up(self) -> tuple[int, int]:
        """Length and end of the longest match; notes the new suffixes for later."""
        here, best = len(self._ids), (0, 0)
        for length in range(SHORTEST, min(LONGEST, here) + 1):
            suffix = tuple(self._ids[-length:])
            end = self._ends.get(suffix)
            if end is not None:
                best = length, end
            self._ends[suffix] = here
        return best
