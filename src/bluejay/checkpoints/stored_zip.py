"""The directory of a ZIP file whose entries are stored as they are, with ZIP64.

torch and NumPy use ZIP as a container of arrays and do not compress, so every entry is a range
of the file that can be mapped, and a file can never unpack to more than its own size: a bomb
would have to be compressed, and compressed entries are refused.
Format: APPNOTE.TXT 6.3.10, sections 4.3.6 to 4.5.3.
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bluejay.checkpoints.mapped_file import MappedFile
from bluejay.checkpoints.refusal import has_control_characters, quoted, refusal
from bluejay.core.errors import CheckpointError

MAX_ENTRIES = 200_000
_MAX_DIRECTORY_BYTES = 32 * 2**20
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF


@dataclass(frozen=True, kw_only=True)
class Extent:
    """A range of bytes of the file."""

    offset: int
    length: int


@dataclass(frozen=True, kw_only=True)
class _Entry:
    name: str
    local_offset: int
    length: int


def read_stored_zip(file: MappedFile) -> Mapping[str, Extent]:
    """Name and byte range of every entry; directory and ranges are proven consistent."""
    count, start, length = _find_directory(file)
    if count > MAX_ENTRIES or length > _MAX_DIRECTORY_BYTES:
        raise refusal(file.path, f"a ZIP directory of {count:,} entries in {length:,} bytes")
    if count * _ENTRY.size > length or start + length > file.size:
        raise _damaged(file)
    extents: dict[str, Extent] = {}
    for entry in _directory(file.raw(start, length), count, file):
        if entry.name in extents:
            raise refusal(file.path, f"the ZIP entry {quoted(entry.name)} appears twice")
        extents[entry.name] = _locate(entry, file, end=start)
    _require_disjoint(extents, file)
    return extents


def _find_directory(file: MappedFile) -> tuple[int, int, int]:
    """Number of entries, offset and length of the central directory."""
    tail_start = max(0, file.size - _END.size - _FULL16)
    tail = file.raw(tail_start, file.size - tail_start)
    found = tail.rfind(b"PK\x05\x06")
    if found < 0 or found + _END.size > len(tail):
        raise refusal(file.path, "cut short: a ZIP file without its end; download it again")
    _, disk, _, _, count, length, start, comment = _END.unpack_from(tail, found)
    if disk not in (0, _FULL16) or found + _END.size + comment != len(tail):
        raise _damaged(file)
    if _FULL16 in (count,) or _FULL32 in (length, start):
        return _find_directory64(file, tail_start + found)
    return count, start, length


def _find_directory64(file: MappedFile, end: int) -> tuple[int, int, int]:
    locator = file.raw(max(0, end - _END64_LOCATOR.size), _END64_LOCATOR.size)
    if len(locator) < _END64_LOCATOR.size or not locator.startswith(b"PK\x06\x07"):
        raise _damaged(file)
    _, _, position, _ = _END64_LOCATOR.unpack(locator)
    record = file.raw(position, _END64.size) if position < file.size else b""
    if len(record) < _END64.size or not record.startswith(b"PK\x06\x06"):
        raise _damaged(file)
    *_, count, length, start = _END64.unpack(record)
    return count, start, length


def _directory(directory: bytes, count: int, file: MappedFile) -> Iterator[_Entry]:
    position = 0
    for _ in range(count):
        if position + _ENTRY.size > len(directory):
            raise _damaged(file)
        fields = _ENTRY.unpack_from(directory, position)
        signature, flags, method = fields[0], fields[3], fields[4]
        packed, length, name_size, extra_size, comment_size = fields[8:13]
        name_at = position + _ENTRY.size
        extra_at = name_at + name_size
        position = extra_at + extra_size + comment_size
        if signature != b"PK\x01\x02" or position > len(directory):
            raise _damaged(file)
        name = directory[name_at:extra_at].decode("utf-8" if flags & 0x800 else "cp437", "replace")
        if has_control_characters(name):
            raise refusal(file.path, f"a ZIP entry is named {quoted(name)}")
        if flags & 1 or method != 0:
            kind = "encrypted" if flags & 1 else "compressed"
            raise refusal(
                file.path,
                f"the ZIP entry {quoted(name)} is {kind}; weights are stored as they are, so "
                "unpack the archive if it holds a checkpoint",
            )
        sizes = _wide(directory[extra_at : extra_at + extra_size], (length, packed, fields[16]))
        if sizes is None or sizes[0] != sizes[1]:
            raise _damaged(file)
        yield _Entry(name=name, local_offset=sizes[2], length=sizes[0])


def _wide(extra: bytes, narrow: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """Size, packed size and offset, each from the ZIP64 field where the narrow one is full."""
    if _FULL32 not in narrow:
        return narrow
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, position)
        values = extra[position + 4 : position + 4 + size]
        position += 4 + size
        wanted = narrow.count(_FULL32)
        if kind == 1 and len(values) >= 8 * wanted:
            wide = iter(struct.unpack_from(f"<{wanted}Q", values))
            a, b, c = (next(wide) if value == _FULL32 else value for value in narrow)
            return a, b, c
    return None


def _locate(entry: _Entry, file: MappedFile, *, end: int) -> Extent:
    """The bytes of an entry, which follow its local header and end before the directory."""
    header = file.raw(entry.local_offset, _LOCAL.size) if entry.local_offset < end else b""
    if len(header) < _LOCAL.size or not header.startswith(b"PK\x03\x04"):
        raise _damaged(file)
    fields = _LOCAL.unpack(header)
    offset = entry.local_offset + _LOCAL.size + fields[9] + fields[10]
    if offset + entry.length > end:
        raise refusal(file.path, f"the ZIP entry {quoted(entry.name)} reaches past its end")
    return Extent(offset=offset, length=entry.length)


def _require_disjoint(extents: Mapping[str, Extent], file: MappedFile) -> None:
    position = 0
    for name, extent in sorted(extents.items(), key=lambda item: item[1].offset):
        if extent.offset < position:
            raise refusal(file.path, f"the ZIP entry {quoted(name)} overlaps another one")
        position = extent.offset + extent.length


def _damaged(file: MappedFile) -> CheckpointError:
    return refusal(file.path, "a damaged ZIP file; download it again")
