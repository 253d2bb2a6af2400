"""Which rows of a cache hold which beginnings of prompts, to be used again. Starts without JAX.

A prefix is used again only where a prompt would have been cut at the same places from position 0
on, so that the result has the bits it would have without. It is known by the digests of its
chunks, each of which covers all chunks before it, the tenant and the adapter.
"""

from array import array
from collections.abc import Sequence
from hashlib import blake2b

from bluejay.generation.prompt_chunks import chunks

# Two prefixes with one digest would lend a row the text of another: to find such a pair must be
# out of reach for whoever sends prompts.
_DIGEST_BYTES = 32


def prefix_keys(ids: Sequence[int], *, tenant: str, adapter: str | None) -> tuple[bytes, ...]:
    """The key of the prompt's beginning up to the end of each of its complete chunks.

    Equal keys mean: same tenant, same adapter, same chunks, same ids. A padded last chunk is not
    complete and has none. Raises OverflowError for ids of more than 64 bits.
    """
    key = blake2b(repr((tenant, adapter)).encode(), digest_size=_DIGEST_BYTES).digest()
    keys = []
    for begin, size in chunks(len(ids)):
        if begin + size <= len(ids):
            content = key + array("q", ids[begin : begin + size]).tobytes()
            key = blake2b(content, digest_size=_DIGEST_BYTES).digest()
            keys.append(key)
    return tuple(keys)


class PrefixIndex:
    """The chunks that each row holds, from position 0 on."""

    def __init__(self, num_slots: int) -> None:
        self._held: list[list[bytes]] = [[] for _ in range(num_slots)]
        self._ends: list[list[int]] = [[] for _ in range(num_slots)]
        self._holders: dict[bytes, dict[int, None]] = {}

    def length(self, slot: int) -> int:
        """Positions that the row holds."""
        return self._ends[slot][-1] if self._ends[slot] else 0

    def end(self, slot: int, count: int) -> int:
        """Positions of the first `count` chunks of those that the row holds."""
        return self._ends[slot][count - 1] if count else 0

    def longest(self, keys: Sequence[bytes]) -> tuple[int, tuple[int, ...]]:
        """How many of a prompt's first chunks some row holds, and all rows that hold so many."""
        for count in range(len(keys), 0, -1):
            if keys[count - 1] in self._holders:
                return count, tuple(self._holders[keys[count - 1]])
        return 0, ()

    def common(self, slot: int, keys: Sequence[bytes]) -> int:
        """How many of a prompt's first chunks the row holds."""
        for count in range(min(len(keys), len(self._held[slot])), 0, -1):
            if keys[count - 1] == self._held[slot][count - 1]:
                return count
        return 0

    def append(self, slot: int, key: bytes, *, end: int) -> None:
        """The row now holds one more chunk, up to position `end`."""
        assert end > self.length(slot)
        self._held[slot].append(key)
        self._ends[slot].append(end)
        self._holders.setdefault(key, {})[slot] = None

    def keep(self, slot: int, count: int) -> None:
        """Forget all but the first `count` chunks of the row."""
        for key in self._held[slot][count:]:
            del self._holders[key][slot]
            if not self._holders[key]:
                del self._holders[key]
        del self._held[slot][count:]
        del self._ends[slot][count:]

    def copy(self, source: int, target: int, count: int) -> None:
        """The target now holds the source's first `count` chunks, and nothing else."""
        self.keep(target, 0)
        pairs = zip(self._held[source][:count], self._ends[source][:count], strict=True)
        for key, end in pairs:
            self.append(target, key, end=end)
