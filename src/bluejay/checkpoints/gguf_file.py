"""Read GGUF files (versions 2 and 3): names, metadata, and tensors dequantized one at a time.

The `gguf` package's own reader takes 2 s to open a small model and believes forged counts, so the
head of the file is read here and only its block arithmetic is used.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.foreign import refuse_foreign
from bluejay.checkpoints.gguf_metadata import GgufCursor, GgufMetadata, read_metadata
from bluejay.checkpoints.gguf_types import STORED_TYPES, StoredType, dequantize
from bluejay.checkpoints.mapped_file import MappedFile, is_addressable
from bluejay.checkpoints.refusal import quoted, refusal
from bluejay.checkpoints.tensor_source import TensorInfo

MAX_KEYS = 65_536
MAX_TENSORS = 100_000
_MAX_RANK = 4
_DEFAULT_ALIGNMENT = 32
_MAX_ALIGNMENT = 2**20
_SMALLEST_PAIR = 8 + 1 + 4 + 1
_SMALLEST_TENSOR = 8 + 1 + 4 + 8 + 4 + 8


class GgufFile:
    """One open GGUF file (a TensorSource); shapes are in NumPy's order, rows first.

    F32, F16, BF16 and integers read as views in their own dtype, blocks as fresh float32 arrays.
    """

    def __init__(self, path: Path) -> None:
        self._file = MappedFile(path)
        try:
            cursor = GgufCursor(self._file)
            num_tensors, num_keys = _read_counts(cursor, self._file)
            self.metadata: GgufMetadata = read_metadata(cursor, num_keys, self._file)
            _refuse_split(self.metadata, path)
            self._types: dict[str, StoredType] = {}
            self._tensors: dict[str, TensorInfo] = {}
            self._offsets: dict[str, int] = {}
            for _ in range(num_tensors):
                self._read_tensor_info(cursor)
            alignment = _read_alignment(self.metadata, path)
            self._data_start = cursor.position + -cursor.position % alignment
            self._require_fit(alignment)
        except BaseException:
            self._file.close()
            raise

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._tensors)

    def read(self, name: str) -> NDArray[Any]:
        info = self._tensors.get(name)
        if info is None:
            raise refusal(self._file.path, f"there is no tensor named {quoted(name)}")
        stored = self._types[name]
        if not stored.is_quantized:
            offset = self._data_start + self._offsets[name]
            return self._file.array(offset, dtype=info.dtype, shape=info.shape)
        return dequantize(self.read_blocks(name), stored, shape=info.shape)

    def read_blocks(self, name: str) -> NDArray[np.uint8]:
        """A tensor of blocks as it is stored: one row of bytes for each row of elements."""
        info, stored = self._tensors[name], self._types[name]
        row_bytes = info.shape[-1] // stored.block_elements * stored.block_bytes
        shape = (math.prod(info.shape[:-1]), row_bytes)
        offset = self._data_start + self._offsets[name]
        return self._file.array(offset, dtype=np.dtype(np.uint8), shape=shape)

    def close(self) -> None:
        self._file.close()

    def _read_tensor_info(self, cursor: GgufCursor) -> None:
        path, name = self._file.path, cursor.name()
        if name in self._tensors:
            raise refusal(path, f"the tensor {quoted(name)} appears twice")
        rank = cursor.u32()
        if not 1 <= rank <= _MAX_RANK:
            raise refusal(path, f"the tensor {quoted(name)} has {rank} dimensions")
        # The file has the fastest axis first.
        shape = tuple([cursor.u64() for _ in range(rank)][::-1])
        number = cursor.u32()
        stored = STORED_TYPES.get(number)
        if stored is None:
            raise refusal(
                path,
                f"the tensor {quoted(name)} is stored as GGML type {number}, which is not "
                "supported; get the model as Q8_0, Q4_K_M or F16",
            )
        if 0 in shape or not is_addressable(shape) or shape[-1] % stored.block_elements:
            raise refusal(path, f"the tensor {quoted(name)} has an impossible shape")
        self._offsets[name] = cursor.u64()
        self._types[name] = stored
        self._tensors[name] = TensorInfo(
            name=name,
            shape=shape,
            dtype=stored.dtype,
            stored=stored.name,
            num_bytes=math.prod(shape) * stored.dtype.itemsize,
        )

    def _require_fit(self, alignment: int) -> None:
        """Tensors are aligned, apart from each other and inside the file, and nothing follows."""
        path, end = self._file.path, 0
        for name, offset in sorted(self._offsets.items(), key=lambda item: item[1]):
            stored = self._types[name]
            if offset % alignment or offset < end:
                kind = "overlaps another one" if offset < end else "is not aligned"
                raise refusal(path, f"the tensor {quoted(name)} {kind}")
            elements = math.prod(self._tensors[name].shape)
            end = offset + elements // stored.block_elements * stored.block_bytes
        available = max(0, self._file.size - self._data_start)
        if end > available:
            raise refusal(
                path,
                f"cut short: its tensors need {end:,} bytes and {available:,} are there; "
                "download it again",
            )
        if available - end >= alignment:
            raise refusal(path, f"{available - end:,} extra bytes follow the last tensor")


def _read_counts(cursor: GgufCursor, file: MappedFile) -> tuple[int, int]:
    """Number of tensors and of keys, each possible in a file of this size."""
    if file.raw(0, 4) != b"GGUF":
        refuse_foreign(file)
        raise refusal(file.path, "not a GGUF file")
    cursor.u32()
    version = cursor.u32()
    if version & 0xFFFF == 0:
        raise refusal(file.path, "a big-endian GGUF file; get the little-endian one")
    if version not in (2, 3):
        raise refusal(file.path, f"GGUF version {version}, where 2 and 3 are supported")
    num_tensors, num_keys = cursor.u64(), cursor.u64()
    least = num_tensors * _SMALLEST_TENSOR + num_keys * _SMALLEST_PAIR
    if least > cursor.remaining:
        raise refusal(
            file.path,
            f"it announces {num_tensors:,} tensors and {num_keys:,} keys, more than "
            f"{file.size:,} bytes can hold",
        )
    if num_tensors > MAX_TENSORS or num_keys > MAX_KEYS:
        raise refusal(file.path, f"{num_tensors:,} tensors and {num_keys:,} keys are too many")
    return num_tensors, num_keys


def _read_alignment(metadata: GgufMetadata, path: Path) -> int:
    alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
    is_power = isinstance(alignment, int) and alignment > 0 and alignment & (alignment - 1) == 0
    if not isinstance(alignment, int) or not is_power or alignment > _MAX_ALIGNMENT:
        raise refusal(path, f"an alignment of {quoted(alignment)}, not a power of two")
    return alignment


def _refuse_split(metadata: GgufMetadata, path: Path) -> None:
    count = metadata.get("split.count", 0)
    if isinstance(count, int) and count > 1:
        raise refusal(
            path, f"one of {count} parts of a split model; join them with llama-gguf-split --merge"
        )
