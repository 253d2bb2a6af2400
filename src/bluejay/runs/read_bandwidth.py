"""How fast this machine reads memory: the limit of decoding, measured when it is needed."""

import numpy as np

from bluejay.core.memory import available_bytes
from bluejay.kernels.library import Library, cpu_library

# Several times the largest caches of a server's processor, which two cores read in 20 ms.
YARDSTICK_BYTES = 512 * 2**20
# For who must not wait: eight times the caches of common processors, read in 10 ms.
SHORT_YARDSTICK_BYTES = 256 * 2**20
_PASSES = 15
_SHARE_OF_FREE = 4


class Yardstick:
    """Memory to be read, in large pages where the system has them."""

    def __init__(self, library: Library, num_bytes: int) -> None:
        self._library = library
        # NumPy asks for large pages; an anonymous `mmap.mmap` is shared memory, which gets none,
        # and one thread reads it at half the rate (15 against 30 GB/s).
        self._array = np.ones(num_bytes, np.uint8)

    def bytes_per_second(self) -> float:
        """At which all threads of the kernels read it now: the median of some passes."""
        return self._library.read_bandwidth(self._array, passes=_PASSES)


def yardstick(num_bytes: int = YARDSTICK_BYTES) -> Yardstick | None:
    """One of that many bytes, or of a quarter of the free memory; None without native kernels."""
    library = cpu_library()
    if library is None:
        return None
    return Yardstick(library, min(num_bytes, available_bytes() // _SHARE_OF_FREE))
