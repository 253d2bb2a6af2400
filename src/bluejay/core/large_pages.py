"""Memory in pages of a wanted size: large ones for what is read over and over.

With pages of 4 KiB a core that streams through weights asks for a translation every 64 cache lines;
with pages of 2 MiB it hardly ever does (docs/lab-book.md).
"""

import mmap
import sys
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
"""Bytes: what XLA and the kernels ask of an array that they take as it is."""

# Anonymous memory of a process is its own alone; Windows has no other.
_PRIVATE: Final[dict[str, int]] = (
    {} if sys.platform == "win32" else {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS}
)


def small_pages(num_bytes: int) -> NDArray[np.uint8]:
    """Zeros of which a few bytes here and there are written: only the pages of those take memory.

    NumPy asks for large pages, and the first byte of one makes the system clear 2 MB.
    """
    memory = mmap.mmap(-1, max(1, num_bytes), **_PRIVATE)
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # a kernel without large pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.uint8)[:num_bytes]


def arena_bytes(sizes: Iterable[int]) -> int:
    """What an arena needs for arrays of these many bytes."""
    return sum(_rounded(size) for size in sizes)


class LargePageArena:
    """`num_bytes` of memory, handed out array by array, each at a multiple of 64 bytes.

    One array of NumPy's, which asks for large pages from 4 MB on, where one for each tensor would
    lose its first and last page. Pages that nothing was written to take no memory, and all of it
    lives as long as some array in it.
    """

    def __init__(self, num_bytes: int) -> None:
        self._bytes = np.empty(num_bytes + ALIGNMENT, np.uint8)
        self._used = -self._bytes.ctypes.data % ALIGNMENT

    def copy(self, values: NDArray[Any], dtype: np.dtype[Any] | None = None) -> NDArray[Any]:
        """The values in this memory, in their own dtype or another."""
        stored = values.dtype if dtype is None else dtype
        begin, length = self._used, values.size * stored.itemsize
        assert begin + length <= self._bytes.size, "the arena is too small for it"
        self._used = begin + _rounded(length)
        place = self._bytes[begin : begin + length].view(stored).reshape(values.shape)
        np.copyto(place, values, casting="unsafe")
        return place


def _rounded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
