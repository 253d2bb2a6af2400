"""Arrays in memory of large pages: values, alignment, and the pages that the system gave."""

import re
from pathlib import Path

import numpy as np
import pytest

from bluejay.core.large_pages import ALIGNMENT, LargePageArena, arena_bytes

_MODE = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def test_arrays_keep_their_values_when_the_arena_is_gone() -> None:
    values = [np.arange(5, dtype=np.float32), np.ones((3, 7), np.uint8), np.zeros((0, 4), np.int8)]
    arena = LargePageArena(arena_bytes(array.nbytes for array in values))
    copies = [arena.copy(array) for array in values]
    del arena
    for array, copy in zip(values, copies, strict=True):
        assert copy.dtype == array.dtype
        np.testing.assert_array_equal(copy, array)
        assert copy.ctypes.data % ALIGNMENT == 0 or not copy.size


def test_copies_convert() -> None:
    values = np.array([[0.5, 1.25], [-3.0, 1e-3]], np.float16)
    copy = LargePageArena(16).copy(values, np.dtype(np.float32))
    np.testing.assert_array_equal(copy, values.astype(np.float32))


def test_the_system_gives_large_pages() -> None:
    if not _MODE.exists() or "[never]" in _MODE.read_text():
        pytest.skip("this system has no transparent large pages")
    copy = LargePageArena(32 << 20).copy(np.ones(32 << 20, np.uint8))
    assert _huge_bytes(copy.ctypes.data + copy.nbytes // 2) >= 16 << 20


def _huge_bytes(address: int) -> int:
    """Bytes in large pages of the mapping that holds the address."""
    for entry in re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text()):
        begin, end = (int(part, 16) for part in entry.split(" ", 1)[0].split("-"))
        if begin <= address < end:
            found = re.search(r"AnonHugePages: +(\d+) kB", entry)
            assert found is not None
            return int(found[1]) * 1024
    raise AssertionError("no mapping holds the array")
