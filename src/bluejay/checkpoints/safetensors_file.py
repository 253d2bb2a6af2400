"""Read safetensors files: our own bounds-checked header, tensors as views of the mapped file.

The published reader accepts duplicate keys and headers of 100 MB (15 s for a million empty
tensors), so every count is checked here against the file's size before it is believed.
Format: https://github.com/huggingface/safetensors#format
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.foreign import refuse_foreign
from bluejay.checkpoints.json_file import parse_json_object
from bluejay.checkpoints.mapped_file import MappedFile, is_addressable
from bluejay.checkpoints.refusal import has_control_characters, quoted, refusal
from bluejay.checkpoints.shard_index import ShardedTensors, open_shards, weights_file
from bluejay.checkpoints.tensor_source import TensorInfo, TensorSource

MAX_HEADER_BYTES = 8 * 2**20
"""About 110 bytes a tensor: the 1,680 tensors of a 530B model in one file take 190 kB."""
MAX_TENSORS = 100_000
MAX_RANK = 16

DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "F64": np.dtype(np.float64),
        "F32": np.dtype(np.float32),
        "F16": np.dtype(np.float16),
        "BF16": np.dtype(ml_dtypes.bfloat16),
        "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
        "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
        "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
        "C64": np.dtype(np.complex64),
        "I64": np.dtype(np.int64),
        "I32": np.dtype(np.int32),
        "I16": np.dtype(np.int16),
        "I8": np.dtype(np.int8),
        "U64": np.dtype(np.uint64),
        "U32": np.dtype(np.uint32),
        "U16": np.dtype(np.uint16),
        "U8": np.dtype(np.uint8),
        "BOOL": np.dtype(np.bool_),
    }
)


class SafetensorsFile:
    """One open safetensors file (a TensorSource); `metadata` is its `__metadata__`."""

    def __init__(self, path: Path) -> None:
        self._file = MappedFile(path)
        try:
            self._open(path)
        except BaseException:
            self._file.close()
            raise

    def _open(self, path: Path) -> None:
        header, self._data_start = _read_header(self._file)
        self.metadata: Mapping[str, str] = _read_metadata(header.pop("__metadata__", {}), path)
        entries = {name: _read_entry(name, entry, path) for name, entry in header.items()}
        self._offsets = {name: offset for name, (_, offset) in entries.items()}
        self._tensors = {name: info for name, (info, _) in entries.items()}
        _require_gapless(list(entries.values()), self._file.size - self._data_start, path)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._tensors)

    def read(self, name: str) -> NDArray[Any]:
        info = self._tensors.get(name)
        if info is None:
            raise refusal(self._file.path, f"there is no tensor named {quoted(name)}")
        offset = self._data_start + self._offsets[name]
        return self._file.array(offset, dtype=info.dtype, shape=info.shape)

    def close(self) -> None:
        self._file.close()


def open_safetensors_folder(folder: Path) -> TensorSource:
    """`model.safetensors` in `folder`, or all shards of `model.safetensors.index.json`."""
    single = folder / "model.safetensors"
    if os.path.lexists(single):
        return SafetensorsFile(weights_file(folder, single.name))
    index = folder / "model.safetensors.index.json"
    sharded: ShardedTensors = open_shards(index, SafetensorsFile, suffix=".safetensors")
    return sharded


def _read_header(file: MappedFile) -> tuple[dict[str, Any], int]:
    """The JSON header and where the tensors' bytes start."""
    refuse_foreign(file)
    if file.size < 10:
        raise refusal(file.path, f"{file.size} bytes are too few for a safetensors header")
    length = int.from_bytes(file.raw(0, 8), "little")
    if length > MAX_HEADER_BYTES:
        reason = f"not a safetensors file, or one with a header of {length:,} bytes"
        raise refusal(file.path, f"{reason}, where at most {MAX_HEADER_BYTES:,} are allowed")
    if 8 + length > file.size:
        raise refusal(
            file.path,
            f"cut short: the header alone needs {8 + length:,} bytes and the file has "
            f"{file.size:,}; download it again",
        )
    text = file.raw(8, length)
    if not text.startswith(b"{"):
        raise refusal(file.path, "not a safetensors file: its header does not start with '{'")
    # One brace a tensor, the header's own, the metadata's; braces in names count too and are rare.
    braces = text.count(b"{")
    if braces > MAX_TENSORS + 2:
        raise refusal(file.path, f"{braces:,} tensors, more than the {MAX_TENSORS:,} allowed")
    return parse_json_object(text, path=file.path), 8 + length


def _read_metadata(metadata: object, path: Path) -> Mapping[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise refusal(path, "its __metadata__ is not an object of strings")
    return MappingProxyType(metadata)


def _read_entry(name: str, entry: object, path: Path) -> tuple[TensorInfo, int]:
    """One tensor of the header and the offset of its first byte after the header."""
    if not name or has_control_characters(name):
        raise refusal(path, f"a tensor is named {quoted(name)}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise refusal(path, f"tensor {quoted(name)} needs exactly dtype, shape and data_offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise refusal(path, f"tensor {quoted(name)} has the unknown dtype {quoted(entry['dtype'])}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_counts(shape) or len(shape) > MAX_RANK or not is_addressable(shape):
        raise refusal(path, f"tensor {quoted(name)} has a shape that is not a list of sizes")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise refusal(path, f"tensor {quoted(name)} has data_offsets that are not a range")
    expected = math.prod(shape) * dtype.itemsize
    if offsets[1] - offsets[0] != expected:
        raise refusal(
            path,
            f"tensor {quoted(name)} of shape {_shown_shape(shape)} and dtype {entry['dtype']} "
            f"does not fill its data_offsets exactly",
        )
    info = TensorInfo(
        name=name, shape=tuple(shape), dtype=dtype, stored=entry["dtype"], num_bytes=expected
    )
    return info, offsets[0]


def _are_counts(values: object) -> bool:
    # A bool is an int in Python, and sizes above 2**63 never fit a file.
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 2**63 for v in values)


def _shown_shape(shape: list[int]) -> str:
    return "x".join(str(size) for size in shape) or "()"


def _require_gapless(entries: list[tuple[TensorInfo, int]], data_size: int, path: Path) -> None:
    """Every byte after the header belongs to exactly one tensor."""
    position = 0
    for info, offset in sorted(entries, key=lambda entry: (entry[1], entry[0].num_bytes)):
        if offset != position:
            kind = "overlaps the tensor before it" if offset < position else "leaves a gap before"
            raise refusal(path, f"tensor {quoted(info.name)} at byte {offset:,} {kind}")
        position += info.num_bytes
    if position > data_size:
        raise refusal(
            path,
            f"cut short: its tensors need {position:,} bytes and {data_size:,} are there; "
            "download it again",
        )
    if position < data_size:
        raise refusal(path, f"{data_size - position:,} extra bytes follow the last tensor")
