"""A weights file mapped read-only into memory, after proving that it is a regular file."""

import math
import mmap
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.files_in_use import use_file
from bluejay.checkpoints.refusal import refusal

_KINDS = (
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISSOCK, "a socket"),
)


class MappedFile:
    """The bytes of one file; every access is checked against the size it had when opened. A file
    that is cut later ends the process where it is touched (`files_in_use`).

    Views share the mapping and keep it alive, so `close` only drops this object's hold on it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        descriptor = _open_regular(path)
        try:
            found = os.fstat(descriptor)
            self.size = found.st_size
            if self.size == 0:
                raise refusal(path, "the file is empty; download or copy it again")
            self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
            _wish_large_pages(self._map)
        except OSError as error:
            raise refusal(path, f"cannot be mapped into memory ({error.strerror})") from error
        finally:
            os.close(descriptor)
        self._bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        address = self._bytes.ctypes.data
        self._end_of_use = use_file(path, found, mapping=self._map, address=address)
        self._recent: tuple[int, int] | None = None

    def view(self, offset: int, length: int) -> NDArray[np.uint8]:
        """Read-only view of `length` bytes; the caller has checked the range."""
        assert 0 <= offset <= offset + length <= self.size
        return self._bytes[offset : offset + length]

    @property
    def buffer(self) -> memoryview:
        """All bytes, for parsers that step through them; it keeps the mapping alive."""
        return memoryview(self._map)

    def raw(self, offset: int, length: int) -> bytes:
        """A copy of at most `length` bytes from `offset` on, shorter at the end of the file."""
        return self._map[offset : offset + length]

    def array(self, offset: int, *, dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
        """The stored array as a read-only view, or as a copy where it is not aligned.

        The pages of the array read before this one are given back to the system, so that reading
        a whole model in turn keeps one tensor resident. Older views stay valid: their pages are
        read again on the next touch.
        """
        length = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self._release_recent()
        self._recent = (offset, length)
        stored = self.view(offset, length).view(dtype).reshape(shape)
        return stored if stored.flags.aligned else stored.copy()

    def close(self) -> None:
        """Forget the mapping; it is unmapped when the last view is gone."""
        self._bytes = np.empty(0, np.uint8)
        self._recent = None
        self.size = 0
        try:
            self._map.close()
        except BufferError:
            return  # views are still in use; the mapping goes with them
        self._end_of_use()

    def _release_recent(self) -> None:
        if self._recent is None or not hasattr(mmap, "MADV_DONTNEED"):
            return
        offset, length = self._recent
        start = offset - offset % mmap.PAGESIZE
        if length:
            self._map.madvise(mmap.MADV_DONTNEED, start, offset + length - start)


def is_addressable(shape: Sequence[int]) -> bool:
    """True if NumPy can hold the shape: it counts 0 as 1, so 0 x 2**62 is too big for it."""
    return math.prod(max(size, 1) for size in shape) < 2**59


def _wish_large_pages(mapping: mmap.mmap) -> None:
    """Some file systems read a file into pages of 2 MiB then, if nothing has read it before
    (docs/lab-book.md); elsewhere nothing changes."""
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):
            mapping.madvise(mmap.MADV_HUGEPAGE)


def _open_regular(path: Path) -> int:
    """A descriptor of a regular file.

    The kind is checked before opening, because opening a device can act on it, and again after,
    because the name may have been given to something else in between. O_NONBLOCK keeps a named
    pipe without a writer from blocking.
    """
    try:
        _require_regular(path, os.stat(path).st_mode)
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a possible file name"
        raise refusal(path, f"cannot be opened ({reason})") from error
    try:
        _require_regular(path, os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _require_regular(path: Path, mode: int) -> None:
    if stat.S_ISREG(mode):
        return
    kind = next((name for test, name in _KINDS if test(mode)), "something else")
    raise refusal(path, f"is {kind}, and weights are read from regular files only")
