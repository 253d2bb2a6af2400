"""Which row of the cache a prompt gets, and what it need not compute there.

Starts without JAX.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from bluejay.generation.prefix_index import PrefixIndex


@dataclass(frozen=True, kw_only=True)
class Reuse:
    """A prompt's first `num_chunks` chunks are there already: `length` positions, in row `source`.

    Nothing needs to be copied where that is the prompt's own row.
    """

    source: int
    num_chunks: int
    length: int


class Slots:
    """Free and taken rows. A free one keeps the prompt chunks it holds until it is taken again."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self._index = PrefixIndex(num_slots)
        # The free ones, the least recently used first.
        self._free = dict.fromkeys(range(num_slots))

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, prompts: Sequence[Sequence[bytes]]) -> tuple[int, ...]:
        """A row for each prompt, given by the keys of its chunks that may be reused."""
        assert len(prompts) <= len(self._free)
        taken: dict[int, int] = {}
        hits = [self._index.longest(keys)[0] for keys in prompts]
        # The longest hit chooses first, or another prompt might take the row that it is in.
        for number in sorted(range(len(prompts)), key=lambda number: -hits[number]):
            taken[number] = self._choose(prompts[number])
            del self._free[taken[number]]
        return tuple(taken[number] for number in range(len(prompts)))

    def release(self, slots: Sequence[int]) -> None:
        """The rows are free; what they hold stays known."""
        for slot in slots:
            assert slot not in self._free
            self._free[slot] = None

    def reuse(self, slot: int, keys: Sequence[bytes]) -> Reuse | None:
        """What can be reused for a prompt in its row. Of the row no more than that stays known."""
        own = self._index.common(slot, keys)
        count, holders = self._index.longest(keys)
        if count == own:
            self._index.keep(slot, own)
            end = self._index.end(slot, own)
            return Reuse(source=slot, num_chunks=own, length=end) if own else None
        self._index.keep(slot, 0)
        source = holders[0]
        if source in self._free:  # it was just of use
            self._free[source] = self._free.pop(source)
        return Reuse(source=source, num_chunks=count, length=self._index.end(source, count))

    def copied(self, slot: int, reuse: Reuse) -> None:
        """The row now holds what was to be reused from another."""
        self._index.copy(reuse.source, slot, reuse.num_chunks)

    def computed(self, slot: int, key: bytes, *, end: int) -> None:
        """The row now holds one more chunk, up to position `end`."""
        self._index.append(slot, key, end=end)

    def forget(self, slots: Sequence[int]) -> None:
        """Nothing of what the rows hold is to be reused."""
        for slot in slots:
            self._index.keep(slot, 0)

    def _choose(self, keys: Sequence[bytes]) -> int:
        """The free row that the prompt's longest prefix is in, or the least recently used one:
        whichever forgets less. What is not in the row can be copied there at little cost."""
        count, holders = self._index.longest(keys)
        empty = [slot for slot in self._free if not self._index.length(slot)]
        oldest: int = next(iter(empty or self._free))
        losses = {
            slot: self._index.length(slot) - self._index.end(slot, count)
            for slot in holders
            if slot in self._free
        }
        if losses:
            holder = min(losses, key=losses.__getitem__)
            if losses[holder] <= self._index.length(oldest):
                return holder
        return oldest
