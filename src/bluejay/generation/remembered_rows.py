"""Which rows of a cache hold which ids, and what is left to run for others. Starts without JAX.

Rows are only a memory: any may be overwritten, and what it held is run again when it is needed.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from bluejay.generation.prompt_chunks import CHUNK_SIZES, chunks

_NARROW = CHUNK_SIZES[-1]
# So many single steps at most, where a chunk would do the same in one call: of a small model two
# take as long as a chunk, of a large one four.
_MOST_STEPS = 2


class OwnedIds(NamedTuple):
    """Ids of one owner. The first `wide` run in chunks of more than 16 positions.

    Up to 16 positions have the bits of single steps (`Runner.repeats_positions`), wider chunks have
    bits of their own; so what is behind these ids is a function of this value.
    """

    owner: str
    wide: int
    ids: tuple[int, ...]

    @classmethod
    def of_prompt(cls, owner: str, ids: Sequence[int]) -> "OwnedIds":
        """Ids that run as `Runner.start` runs them."""
        wide = sum(size for _, size in chunks(len(ids)) if size > _NARROW)
        return cls(owner, wide, tuple(ids))

    def followed_by(self, token: int) -> "OwnedIds":
        """One more, in a single step."""
        return OwnedIds(self.owner, self.wide, (*self.ids, token))

    @property
    def before_step(self) -> "OwnedIds":
        """Without the last id, which was a single step."""
        return OwnedIds(self.owner, self.wide, self.ids[:-1])

    def shared(self, other: "OwnedIds") -> int:
        """How many positions, from the first on, have the same bits."""
        same = _num_same(self.ids, other.ids)
        if self.wide == other.wide and same >= self.wide:
            return same
        end = 0
        for own, others in zip(chunks(self.wide), chunks(other.wide), strict=False):
            if own != others or sum(own) > same:
                break
            end = sum(own)
        return end

    def left(self, done: int, *, capacity: int) -> list[tuple[int, int]]:
        """(begin, size) of the chunks behind positions that are there, at least one. Size 1 is a
        single step; the last chunk of 16 may reach beyond the ids, not beyond the capacity."""
        length = len(self.ids)
        found = [chunk for chunk in chunks(self.wide) if sum(chunk) > min(done, length - 1)]
        begin = max(self.wide, min(done, length - 1))
        is_short = done and length - begin <= _MOST_STEPS
        while begin < length:
            size = 1 if is_short or begin + _NARROW > capacity else _NARROW
            found.append((begin, size))
            begin += size
        return found


class RememberedRows:
    """Rows of a cache by the ids that they hold; the one not used for longest is given next.

    The last `num_loose` are for ids of which there are many and each is rarely needed again, so
    that these do not take the place of the others. No owner's rows are used for another's ids: a
    reply in less time would tell what others typed.
    """

    def __init__(self, num_rows: int, *, num_loose: int) -> None:
        self._num_firm = num_rows - num_loose
        firm, loose = range(self._num_firm), range(self._num_firm, num_rows)
        self._rows: tuple[OrderedDict[int, OwnedIds | None], ...] = (
            OrderedDict.fromkeys(firm),
            OrderedDict.fromkeys(loose),
        )
        self._row_of: dict[OwnedIds, int] = {}

    def row_of(self, ids: OwnedIds) -> int | None:
        """The row that holds just these, now the last used of its kind."""
        row = self._row_of.get(ids)
        if row is not None:
            self._use(row)
        return row

    def nearest(self, wanted: OwnedIds) -> tuple[int, int]:
        """A row, now the last used, and how many of its positions are wanted; (-1, 0) for none."""
        best, most = -1, 0
        for held, row in self._row_of.items():
            if held.owner == wanted.owner and (shared := held.shared(wanted)) > most:
                best, most = row, shared
        if most:
            self._use(best)
        return best, most

    def take(self, *, is_loose: bool) -> int:
        """The row that was not used for longest, empty until `hold`."""
        rows = self._rows[is_loose]
        row, held = next(iter(rows.items()))
        if held is not None:
            del self._row_of[held]
        rows[row] = None
        rows.move_to_end(row)
        return row

    def hold(self, row: int, ids: OwnedIds) -> None:
        """All of these ids are in the row now."""
        if (before := self._row_of.get(ids)) is not None:
            self._rows[before >= self._num_firm][before] = None
        self._rows[row >= self._num_firm][row] = ids
        self._row_of[ids] = row

    def _use(self, row: int) -> None:
        self._rows[row >= self._num_firm].move_to_end(row)


def _num_same(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    """Ids at the beginning that are the same. By halves: Python compares slices fast."""
    low, high = 0, min(len(a), len(b))
    while low < high:
        middle = (low + high + 1) // 2
        if a[low:middle] == b[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
