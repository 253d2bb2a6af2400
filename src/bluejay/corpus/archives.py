"""The files in a folder or an archive, one after the other, never extracted to the disk."""

import gzip
import importlib
import io
import os
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn, Protocol, Self, cast

from bluejay.core.errors import DataError, UsageError
from bluejay.corpus.document import RejectedError

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst")
MAX_MEMBER_BYTES = 1 << 30
"""A text of 1 GiB is read whole; larger ones have to come as .jsonl, a document a line."""

_MAX_WINDOW_BYTES = 1 << 27  # what `zstd --long` makes; more would let a file ask for memory
_PACKED_BYTES = 1 << 12  # zeros unpack to 32,000 times their size: at most 130 MB at a time
_TAR_BLOCK = 512
_MAX_HEADER_BYTES = 1 << 20
_EXTENDED_HEADERS = (
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
)

OnBytes = Callable[[int], None]


class Readable(Protocol):
    """What tar and the decompressors read from and give."""

    def read(self, size: int, /) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class Member:
    """A file: its name below the source, with `/`, and its bytes while it is the current one."""

    name: str
    stream: io.BufferedReader

    def read(self, max_bytes: int = MAX_MEMBER_BYTES) -> bytes:
        """All of it. Raises RejectedError if that is more than `max_bytes`."""
        data = self.stream.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise RejectedError(f"larger than {max_bytes >> 20} MiB")
        return data


def source_bytes(source: Path) -> int:
    """How much `members` reads of a source, for progress."""
    return sum(path.stat().st_size for _, path in _files(source))


def members(source: Path, on_bytes: OnBytes = lambda _: None) -> Iterator[Member]:
    """The files of a folder (sorted, archives in it opened), of an archive, or the one file.

    Links, devices, hidden files and names that lead out of the source are passed over; `.zst` at
    the end of a name is gone with the compression. `on_bytes` hears how many more bytes of the
    source were read. Raises UsageError if nothing is there, DataError for what is damaged.
    """
    for name, path in _files(source):
        with _told(path), path.open("rb", buffering=0) as raw:
            stream = _unpacked(path.name, io.BufferedReader(_CountedFile(raw, on_bytes)))
            if path.name.lower().endswith(ARCHIVE_SUFFIXES):
                yield from _archive_members(stream, path)
            else:
                yield _member(name.removesuffix(".zst"), stream, path)


def _files(source: Path) -> Iterator[tuple[str, Path]]:
    """Regular files, and their names from the source's own on; sorted, without links."""
    if not source.exists():
        raise UsageError(f"There is no file or folder {str(source)[:200]!r}: check the path.")
    source = source.resolve()
    if source.is_file():
        yield source.name, source
        return
    for folder, folders, names in os.walk(source, onerror=_refuse):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(folder) / name
            if not name.startswith(".") and path.is_file() and not path.is_symlink():
                yield path.relative_to(source.parent).as_posix(), path


def _refuse(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename} cannot be read ({error.strerror}): check its permissions.")


def _archive_members(stream: Readable, path: Path) -> Iterator[Member]:
    tail = _TailKeeper(stream)
    with tarfile.open(fileobj=cast(Any, tail), mode="r|", tarinfo=_Header) as archive:
        for info in archive:
            # The archive keeps every header that it passes, and there may be millions.
            cast(Any, archive).members = []
            content = archive.extractfile(info) if _is_safe(info) else None
            if content is not None:
                yield _member(info.name.removeprefix("./"), content, path)
    # Blocks of zeros end an archive; without them it was cut between two files.
    if len(tail.last) < _TAR_BLOCK or any(tail.last):
        raise EOFError("it is cut off")


def _is_safe(info: tarfile.TarInfo) -> bool:
    path = PurePosixPath(info.name)
    parts = path.parts
    return (
        info.isreg()
        # A sparse file of a few bytes may claim gigabytes of zeros.
        and not info.issparse()
        and not path.is_absolute()
        and ".." not in parts
        and not any(part.startswith(".") for part in parts)
        and info.name.isprintable()
    )


class _Header(tarfile.TarInfo):
    """A header; long names and extended ones, which are read into memory, have a limit."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        info = super().frombuf(buf, encoding, errors)
        if info.type in _EXTENDED_HEADERS and info.size > _MAX_HEADER_BYTES:
            raise tarfile.HeaderError(f"a header of {info.size:,} bytes")
        return info


def _unpacked(name: str, stream: io.BufferedReader) -> Readable:
    if name.lower().endswith(".zst"):
        return io.BufferedReader(_ZstdStream(stream))
    if name.lower().endswith((".gz", ".tgz")):
        return gzip.GzipFile(fileobj=stream, mode="rb")
    return stream


def _member(name: str, stream: Readable, path: Path) -> Member:
    return Member(name=name, stream=io.BufferedReader(_Guarded(stream, path)))


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What the readers raise for a damaged file, as one sentence."""
    try:
        yield
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            error.filename = error.filename or str(path)
            _refuse(error)
        reason = getattr(error, "strerror", None) or str(error) or "it is cut off"
        raise DataError(f"{path} cannot be read ({reason}): fetch it again.") from error


class _Guarded(io.RawIOBase):
    """The content of a file, which may turn out to be damaged while others read it."""

    def __init__(self, stream: Readable, path: Path) -> None:
        self._stream = stream
        self._path = path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _told(self._path):
            data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class _CountedFile(io.RawIOBase):
    """Tells how much is read."""

    def __init__(self, file: io.RawIOBase, on_bytes: OnBytes) -> None:
        self._file = file
        self._on_bytes = on_bytes

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        self._on_bytes(count)
        return count


class _TailKeeper:
    """Passes an archive on, and remembers its last block."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.last = b""

    def read(self, size: int) -> bytes:
        data = self._stream.read(size)
        self.last = (self.last + data[-_TAR_BLOCK:])[-_TAR_BLOCK:]
        return data


class _ZstdStream(io.RawIOBase):
    """Decompressed bytes, of several frames too; EOFError where the last one is cut off.

    The library's own stream ends without a word there.
    """

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._zstandard = _zstandard()
        self._frame: Any = None
        self._packed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            self._packed = self._packed or self._stream.read(_PACKED_BYTES)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("it is cut off")
                return 0
            self._ready = memoryview(self._decompress())
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decompress(self) -> bytes:
        if self._frame is None:
            decompressor = self._zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW_BYTES)
            self._frame = decompressor.decompressobj()
        try:
            data: bytes = self._frame.decompress(self._packed)
        except self._zstandard.ZstdError as error:
            raise OSError(None, str(error)) from error
        self._packed = self._frame.unused_data if self._frame.eof else b""
        if self._frame.eof:
            self._frame = None
        return data


def _zstandard() -> Any:
    try:
        return importlib.import_module("zstandard")
    except ImportError as error:
        raise UsageError(
            "Files that end in .zst need the package zstandard: install bluejay[train]."
        ) from error


def book_sources(data: Path) -> list[Path]:
    """The books of a data folder: archives in `text/books`, or that folder of unpacked ones as
    `bluejay prepare --fetch-books` leaves it; nothing if it has neither."""
    folder = data / "text" / "books"
    unpacked = [folder] if any(folder.glob("*/src/epub/content.opf")) else []
    return sorted(folder.glob("*.tar.zst")) or unpacked
