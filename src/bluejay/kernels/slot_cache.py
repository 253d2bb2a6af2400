"""A cache of many rows in memory that the native library knows by a number.

Programs take the number and not the arrays: a call has JAX look at one array where there were two a
layer, and a call that fails leaves the other rows as they are.

Axes: R rows  L layers  K key/value heads  S capacity in positions  H head width
"""

import math
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

from bluejay.core.large_pages import ALIGNMENT, small_pages
from bluejay.kernels.library import Library, library

# Between two looks whether a call that posts nothing has failed.
_PATIENCE: Final = 0.25


class SlotCache:
    """Keys and values in float32, float16 or int8, [R, L, K, S, H]: all of a row together.

    `mail` are the most steps of a call over it and the most numbers that one of them posts.

    Pages that nothing was written to take no memory. Large ones are faster to read, but the first
    positions of a row take many of them: not where it `is_sparse`, with many rows that hold little
    and are often others. It is let go with this object, which must live
    until the last program that has its number has run: later ones are refused.
    """

    def __init__(
        self,
        *,
        layers: int,
        rows: int,
        heads: tuple[int, int, int],
        dtype: DTypeLike,
        is_sparse: bool = False,
        mail: tuple[int, int] = (0, 0),
    ) -> None:
        found = library()
        assert found is not None, "only the native library has such caches"
        self._library = found
        stored, shape = np.dtype(dtype), (rows, layers, *heads)
        self._arrays = [_aligned(shape, stored, is_sparse) for _ in range(2)]
        if stored == np.int8:
            scales = np.dtype(np.float32)
            self._arrays += [_aligned(shape[:-1], scales, is_sparse) for _ in range(2)]
        self._mail = np.zeros(mail, np.int32)
        sizes = (layers, rows, *heads)
        self._name = found.keep_cache(stored.itemsize, sizes, self._arrays, mail=self._mail)
        self.number = np.array([self._name], np.int32)
        weakref.finalize(self, _forget, found, self._name, (self._arrays, self._mail))

    def halt(self, is_wanted: bool) -> None:
        """Whether a call of several steps is to end with the one it is at, this one and all later
        ones. From any thread."""
        self._library.halt(self._name, is_wanted)

    def clear_mail(self) -> None:
        """To be called before a call that posts what it chooses."""
        self._library.clear_mail(self._name)

    def mail(
        self, has_ended: Callable[[], bool], *, pause: Callable[[], float] = lambda: 0.0
    ) -> Iterator[tuple[NDArray[np.int32], bool]]:
        """What steps of a call post (`post_choices`), a row for each that is new, and whether the
        last one is among them.

        Nobody needs to hear of the next step for `pause` seconds, asked before each wait. The
        numbers stay as they are until the mail is cleared. A call that fails posts no last one:
        `has_ended` tells of that.
        """
        seen, is_last = 0, False
        while not is_last:
            ended = has_ended()
            count, is_last = self._library.await_mail(
                self._name,
                seen,
                pause=0.0 if ended else min(pause(), _PATIENCE),
                patience=0.0 if ended else _PATIENCE,
            )
            if count > seen:
                yield self._mail[seen:count], is_last
            if ended:
                return
            seen = count

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a row over those of another. No program that
        touches either may run meanwhile."""
        for array in self._arrays:
            array[target, :, :, :length] = array[source, :, :, :length]


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any], is_sparse: bool) -> NDArray[Any]:
    # What was not written is not read. Memory of NumPy's has large pages.
    length = math.prod(shape) * dtype.itemsize
    if is_sparse:
        return small_pages(length).view(dtype).reshape(shape)
    memory = np.empty(length + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return memory[begin : begin + length].view(dtype).reshape(shape)


def _forget(found: Library, number: int, arrays: Any) -> None:
    # `arrays` are let go behind the number. No hints of sequences: see `resident_blocks`.
    found.forget_cache(number)
    del arrays
