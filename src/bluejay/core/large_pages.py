"""Memory for what is read over and over, in large pages where the system has them.

With pages of 4 KiB a core that streams through weights asks for a translation every 64 cache lines;
with pages of 2 MiB it hardly ever does (docs/lab-book.md).
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
"""Bytes: what XLA and the kernels ask of an array that they take as it is."""


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
