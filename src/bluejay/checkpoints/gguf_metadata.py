"""The key-value part of a GGUF file: checked in one pass, long values decoded when asked for.

Every length is compared with the bytes that are left before it is believed. Walking over the
98,000 strings of a tokenizer takes some 15 ms; decoding them all would take several times that.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.mapped_file import MappedFile
from bluejay.checkpoints.refusal import has_control_characters, quoted, refusal
from bluejay.core.errors import CheckpointError

MAX_STRINGS = 2**22
"""Of all arrays together; the largest vocabularies and their merges come to about 800,000."""
_MAX_NAME_BYTES = 65535
_STRING, _ARRAY = 8, 9
# gguf_metadata_value_type of every fixed-size value.
_NUMBERS: Mapping[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    7: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
_U32 = struct.Struct("<I")
_U64 = struct.Struct("<Q")


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a value lies: `count` elements of `kind` from `offset`; scalars are not arrays."""

    kind: int
    count: int
    offset: int
    is_array: bool


class GgufMetadata(Mapping[str, object]):
    """Scalars as int, float, bool or str; arrays as list[str] or as a read-only NumPy array.

    It keeps the file's mapping alive by itself, so it outlasts `close` of the file.
    """

    def __init__(self, file: MappedFile, places: Mapping[str, _Place]) -> None:
        self._path = file.path
        self._buffer = file.buffer
        self._places = dict(places)
        self._decoded: dict[str, object] = {}

    def __getitem__(self, key: str) -> object:
        if key not in self._decoded:
            self._decoded[key] = self._decode(key, self._places[key])
        return self._decoded[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def _decode(self, key: str, place: _Place) -> object:
        if place.kind == _STRING:
            try:
                strings = self._strings(place)
            except UnicodeDecodeError as error:
                raise refusal(self._path, f"the value of {quoted(key)} is not UTF-8") from error
            return strings if place.is_array else strings[0]
        dtype = _NUMBERS[place.kind]
        numbers: NDArray[Any] = np.frombuffer(
            self._buffer, dtype, count=place.count, offset=place.offset
        )
        return numbers if place.is_array else numbers[0].item()

    def _strings(self, place: _Place) -> list[str]:
        strings, position, buffer = [], place.offset, self._buffer
        for _ in range(place.count):
            start = position + 8
            position = start + _U64.unpack_from(buffer, position)[0]
            strings.append(str(buffer[start:position], "utf-8"))
        return strings


class GgufCursor:
    """Reads forward through the head of a GGUF file and never past its end."""

    def __init__(self, file: MappedFile) -> None:
        self._file = file
        self._buffer = file.buffer
        self._strings_left = MAX_STRINGS
        self.position = 0

    @property
    def remaining(self) -> int:
        return self._file.size - self.position

    def u32(self) -> int:
        value: int = _U32.unpack_from(self._buffer, self._advance(4))[0]
        return value

    def u64(self) -> int:
        value: int = _U64.unpack_from(self._buffer, self._advance(8))[0]
        return value

    def name(self) -> str:
        """A short string that is going to be printed."""
        length = self.u64()
        if length > _MAX_NAME_BYTES:
            raise refusal(self._file.path, f"a name of {length:,} bytes")
        start = self._advance(length)
        try:
            name = str(self._buffer[start : start + length], "utf-8")
        except UnicodeDecodeError as error:
            raise refusal(self._file.path, "a name is not UTF-8") from error
        if not name or has_control_characters(name):
            raise refusal(self._file.path, f"something is named {quoted(name)}")
        return name

    def value(self, key: str) -> _Place:
        """Step over one value of any kind, remembering where it is."""
        kind = self.u32()
        is_array = kind == _ARRAY
        count = 1
        if is_array:
            kind, count = self.u32(), self.u64()
        place = _Place(kind=kind, count=count, offset=self.position, is_array=is_array)
        if kind == _STRING:
            self._skip_strings(key, count)
        elif kind in _NUMBERS:
            self._advance(count * _NUMBERS[kind].itemsize)
        else:
            what = "an array of arrays" if kind == _ARRAY else f"the unknown type {kind}"
            raise refusal(self._file.path, f"the value of {quoted(key)} has {what}")
        return place

    def _skip_strings(self, key: str, count: int) -> None:
        if 8 * count > self.remaining:
            raise self._cut_short()
        self._strings_left -= count
        if self._strings_left < 0:
            raise refusal(self._file.path, f"{quoted(key)} has {count:,} strings, too many")
        position, size, unpack = self.position, self._file.size, _U64.unpack_from
        for _ in range(count):
            if position + 8 > size:
                raise self._cut_short()
            position += 8 + unpack(self._buffer, position)[0]
        if position > size:
            raise self._cut_short()
        self.position = position

    def _advance(self, length: int) -> int:
        """Where the next `length` bytes start, which are then behind the cursor."""
        start = self.position
        if length > self.remaining:
            raise self._cut_short()
        self.position = start + length
        return start

    def _cut_short(self) -> CheckpointError:
        return refusal(
            self._file.path,
            f"cut short or damaged: at byte {self.position:,} it announces more than the "
            f"{self._file.size:,} bytes it has; download it again",
        )


def read_metadata(cursor: GgufCursor, count: int, file: MappedFile) -> GgufMetadata:
    """The next `count` keys and values."""
    places: dict[str, _Place] = {}
    for _ in range(count):
        key = cursor.name()
        if key in places:
            raise refusal(file.path, f"the key {quoted(key)} appears twice")
        places[key] = cursor.value(key)
    return GgufMetadata(file, places)
