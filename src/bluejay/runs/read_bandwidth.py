"""How fast this machine reads memory: the limit of decoding, measured when it is needed."""

import time

from bluejay.core.large_pages import LargePageArena
from bluejay.core.memory import available_bytes
from bluejay.kernels.library import Library, cpu_library

# Several times the largest caches of a server's processor, which two cores read in 20 ms.
YARDSTICK_BYTES = 512 * 2**20
# One pass takes 5 ms: even beside other processes some passes are left alone.
SHORT_YARDSTICK_BYTES = 128 * 2**20
_PASSES = 5
_SHARE_OF_FREE = 4


class Yardstick:
    """Memory to be read, in large pages where the system has them, as its pages are touched."""

    def __init__(self, library: Library, num_bytes: int) -> None:
        self._library = library
        self._array = LargePageArena(num_bytes).take(num_bytes)
        self._array.fill(1)

    def bytes_per_second(self) -> float:
        """At which all threads of the kernels read it now: the median of some passes."""
        return self._library.read_bandwidth(self._array, passes=_PASSES)

    def highest_bytes_per_second(self, seconds: float) -> float:
        """The best pass of so many seconds: what there is when nothing else runs."""
        best, end = 0.0, time.perf_counter() + seconds
        while not best or time.perf_counter() < end:
            best = max(best, self._library.read_bandwidth(self._array, passes=1))
        return best


def yardstick(num_bytes: int = YARDSTICK_BYTES) -> Yardstick | None:
    """One of that many bytes, or of a quarter of the free memory; None without native kernels."""
    library = cpu_library()
    if library is None:
        return None
    return Yardstick(library, min(num_bytes, available_bytes() // _SHARE_OF_FREE))
