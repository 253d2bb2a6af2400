"""A cache of many rows in memory that the native library knows by a number.

Programs take the number and not the arrays: a call has JAX look at one array where there were two a
layer, and a call that fails leaves the other rows as they are.

Axes: R rows  L layers  K key/value heads  S capacity in positions  H head width
"""

import math
import weakref
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bluejay.core.large_pages import ALIGNMENT
from bluejay.kernels.library import Library, library


class SlotCache:
    """Keys and values in float32, float16 or int8, [R, L, K, S, H]: all of a row together.

    Pages that nothing was written to take no memory. It is let go with this object, which must live
    until the last program that has its number has run: later ones are refused.
    """

    def __init__(
        self, *, layers: int, rows: int, heads: tuple[int, int, int], dtype: DTypeLike
    ) -> None:
        found = library()
        assert found is not None, "only the native library has such caches"
        stored, shape = np.dtype(dtype), (rows, layers, *heads)
        self._arrays = [_aligned(shape, stored) for _ in range(2)]
        if stored == np.int8:
            self._arrays += [_aligned(shape[:-1], np.dtype(np.float32)) for _ in range(2)]
        self._halt = np.zeros(1, np.int32)
        sizes = (layers, rows, *heads)
        number = found.keep_cache(stored.itemsize, sizes, self._arrays, halt=self._halt)
        self.number = np.array([number], np.int32)
        weakref.finalize(self, _forget, found, number, (self._arrays, self._halt))

    def halt(self, is_wanted: bool) -> None:
        """Whether a call of several steps is to end with the one it is at, this one and all later
        ones. From any thread."""
        self._halt[0] = is_wanted

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a row over those of another. No program that
        touches either may run meanwhile."""
        for array in self._arrays:
            array[target, :, :, :length] = array[source, :, :, :length]


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    # Not zeros: of those NumPy asks no large pages. What was not written is not read.
    length = math.prod(shape) * dtype.itemsize
    memory = np.empty(length + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + length].view(dtype).reshape(shape)


def _forget(found: Library, number: int, arrays: Any) -> None:
    # `arrays` are let go behind the number. No hints of sequences: see `resident_blocks`.
    found.forget_cache(number)
    del arrays
