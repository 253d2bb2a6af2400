"""Read `.npz` files that `numpy.savez` wrote, as views of the mapped file.

Nothing is evaluated or unpickled: the header of each array is matched against the one form that
NumPy writes, and its size must equal the stored one before anything is allocated.
Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.mapped_file import MappedFile, is_addressable
from bluejay.checkpoints.refusal import quoted, refusal
from bluejay.checkpoints.stored_zip import Extent, read_stored_zip

_MAX_HEADER_BYTES = 4096
_HEADER = re.compile(
    r"\{'descr': '(?P<descr>[^']{1,16})', 'fortran_order': (?P<fortran>False|True), "
    r"'shape': \((?P<shape>[0-9, ]{0,256})\), \} *\n",
    re.ASCII,
)
# NumPy does not know bfloat16 and stores it as two opaque bytes.
_DTYPES = {"<V2": np.dtype(ml_dtypes.bfloat16), "|V2": np.dtype(ml_dtypes.bfloat16)} | {
    np.dtype(code).str: np.dtype(code)
    for code in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?")
}


@dataclass(frozen=True, kw_only=True)
class StoredArray:
    """One array of the archive, before a byte of it is read."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    is_fortran: bool
    offset: int


class NpzFile:
    """An open archive; `arrays` maps the names (without `.npy`) in the order of the file."""

    def __init__(self, path: Path) -> None:
        self._file = MappedFile(path)
        try:
            entries = read_stored_zip(self._file)
            self._arrays = {
                name.removesuffix(".npy"): _read_header(name, extent, self._file)
                for name, extent in entries.items()
            }
        except BaseException:
            self._file.close()
            raise

    @property
    def arrays(self) -> Mapping[str, StoredArray]:
        return MappingProxyType(self._arrays)

    def read(self, name: str) -> NDArray[Any]:
        """Read-only view of one array; arrays stored in Fortran order come as transposed views."""
        array = self._arrays[name]
        if not array.is_fortran:
            return self._file.array(array.offset, dtype=array.dtype, shape=array.shape)
        return self._file.array(array.offset, dtype=array.dtype, shape=array.shape[::-1]).T

    def close(self) -> None:
        self._file.close()


def _read_header(name: str, extent: Extent, file: MappedFile) -> StoredArray:
    start = file.raw(extent.offset, min(extent.length, 12))
    is_long = start[6:7] in (b"\x02", b"\x03")
    size_at, size_length = (8, 4) if is_long else (8, 2)
    if len(start) < 12 or start[:6] != b"\x93NUMPY" or start[6] not in (1, 2, 3):
        raise refusal(file.path, f"the entry {quoted(name)} is not a NumPy array")
    length = int.from_bytes(start[size_at : size_at + size_length], "little")
    data_at = size_at + size_length + length
    if length > _MAX_HEADER_BYTES or data_at > extent.length:
        raise refusal(file.path, f"the array {quoted(name)} has a header of {length:,} bytes")
    text = file.raw(extent.offset + size_at + size_length, length).decode("latin-1")
    match = _HEADER.fullmatch(text)
    if match is None:
        raise refusal(file.path, f"the array {quoted(name)} has a header that NumPy never writes")
    dtype = _DTYPES.get(match["descr"])
    if dtype is None:
        what = "Python objects" if "O" in match["descr"] else f"dtype {quoted(match['descr'])}"
        raise refusal(file.path, f"the array {quoted(name)} holds {what}, which weights never do")
    shape = tuple(int(size) for size in match["shape"].replace(",", " ").split())
    found = extent.length - data_at
    if not is_addressable(shape) or math.prod(shape) * dtype.itemsize != found:
        raise refusal(
            file.path, f"the array {quoted(name)} does not have the {found:,} bytes it should"
        )
    return StoredArray(
        dtype=dtype,
        shape=shape,
        is_fortran=match["fortran"] == "True",
        offset=extent.offset + data_at,
    )
