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
        return self._replace(ids=(*self.ids, token))

    @property
    def parent(self) -> "OwnedIds | None":
        """All but the last id, if that is a single step."""
        one_less = len(self.ids) - 1
        return self._replace(ids=self.ids[:-1]) if one_less > 0 and one_less >= self.wide else None

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

    def left(self, done: int) -> list[tuple[int, int]]:
        """(begin, size) of the chunks behind positions that are there, at least one. Size 1 is a
        single step; the last chunk of 16 may reach beyond the ids."""
        length = len(self.ids)
        found = [chunk for chunk in chunks(self.wide) if sum(chunk) > min(done, length - 1)]
        begin = max(self.wide, min(done, length - 1))
        if 0 < length - begin <= _MOST_STEPS and done:
            return found + [(at, 1) for at in range(begin, length)]
        return found + [(at, _NARROW) for at in range(begin, length, _NARROW)]


class RememberedRows:
    """Rows of a cache by the ids that they hold; the one not used for longest is given next.

    No owner's rows are used for another's ids: a reply in less time would tell what others typed.
    """

    def __init__(self, num_rows: int) -> None:
        assert num_rows > 1, "what is copied needs a row beside its own"
        self._rows: OrderedDict[int, OwnedIds | None] = OrderedDict.fromkeys(range(num_rows))
        self._row_of: dict[OwnedIds, int] = {}

    def nearest(self, wanted: OwnedIds) -> tuple[int, int]:
        """A row, now the last used, and how many of its positions are wanted; (-1, 0) for none."""
        parent = wanted.parent
        if parent is not None and (row := self._row_of.get(parent)) is not None:
            self._rows.move_to_end(row)
            return row, len(parent.ids)
        best, most = -1, 0
        for held, row in self._row_of.items():
            if held.owner == wanted.owner and (shared := held.shared(wanted)) > most:
                best, most = row, shared
        if most:
            self._rows.move_to_end(best)
        return best, most

    def take(self) -> int:
        """The row that was not used for longest, empty until `hold`."""
        row, held = next(iter(self._rows.items()))
        if held is not None:
            del self._row_of[held]
        self._rows[row] = None
        return row

    def hold(self, row: int, ids: OwnedIds) -> None:
        """All of these ids are in the row now."""
        # The same may lie in another, which then ages.
        if (before := self._row_of.pop(ids, None)) is not None:
            self._rows[before] = None
        self._rows[row] = ids
        self._rows.move_to_end(row)
        self._row_of[ids] = row

    def forget(self) -> None:
        """Nothing is known of any row."""
        self._rows = OrderedDict.fromkeys(self._rows)
        self._row_of.clear()


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
