"""Memory for what is read over and over, in large pages where the system has them.

With pages of 4 KiB a core that streams through weights asks for a translation every 64 cache lines;
with pages of 2 MiB it hardly ever does (docs/lab-book.md).
"""

import mmap
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray

_LARGE_PAGE = 1 << 21
ALIGNMENT = 64
"""Bytes: what XLA and the kernels ask of an array that they take as it is."""


def arena_bytes(sizes: Iterable[int]) -> int:
    """What an arena needs for arrays of these many bytes."""
    return sum(_rounded(size, ALIGNMENT) for size in sizes)


class LargePageArena:
    """`num_bytes` of memory, handed out array by array, each at a multiple of 64 bytes.

    Pages that nothing was written to take no memory. The memory lives as long as some array of it.
    """

    def __init__(self, num_bytes: int) -> None:
        size = _rounded(num_bytes, _LARGE_PAGE) + _LARGE_PAGE
        # Private: shared memory has large pages only where an administrator allows them.
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        wish_large_pages(self._map)
        self._bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        address = self._bytes.ctypes.data
        self._used = _rounded(address, _LARGE_PAGE) - address

    def copy(self, values: NDArray[Any], dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
        """The values in this memory, in their own dtype or another."""
        stored = values.dtype if dtype is None else dtype
        place = self.take(values.size * stored.itemsize).view(stored).reshape(values.shape)
        np.copyto(place, values, casting="unsafe")
        return place

    def take(self, num_bytes: int) -> NDArray[np.uint8]:
        """So many bytes of it, zeros until they are written."""
        begin = self._used
        assert begin + num_bytes <= self._bytes.size, (
            "the arena is smaller than what is asked of it"
        )
        self._used = begin + _rounded(num_bytes, ALIGNMENT)
        return self._bytes[begin : begin + num_bytes]


def wish_large_pages(memory: mmap.mmap) -> None:
    """Ask for large pages, of a mapped file too: some file systems read it into such pages then,
    if nothing has read it before. Without an answer nothing changes."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            memory.madvise(mmap.MADV_HUGEPAGE)


def _rounded(size: int, unit: int) -> int:
    return -(-size // unit) * unit
