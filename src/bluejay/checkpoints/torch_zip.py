"""Read torch checkpoints (`pytorch_model.bin`, `.pt`, `.pth`) without torch and without pickle.

Since torch 1.6 such a file is a ZIP of stored entries: `data.pkl` describes the tensors,
`data/KEY` holds the bytes of each storage. Older files are one bare pickle and are refused by
name in `foreign`.
"""

import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.foreign import refuse_foreign
from bluejay.checkpoints.mapped_file import MappedFile, is_addressable
from bluejay.checkpoints.refusal import has_control_characters, listed, quoted, refusal
from bluejay.checkpoints.shard_index import open_shards, weights_file
from bluejay.checkpoints.state_pickle import (
    MAX_PICKLE_BYTES,
    StatePickleError,
    StoredTensor,
    read_state_pickle,
)
from bluejay.checkpoints.stored_zip import Extent, read_stored_zip
from bluejay.checkpoints.tensor_source import TensorInfo, TensorSource

WRAPPERS = ("state_dict", "model", "module", "model_state_dict")
"""Keys under which training scripts keep the weights beside optimizer and step."""
_MAX_EXPANDED_BYTES = 16 * 2**20
"""`Tensor.expand` repeats stored elements with a stride of 0, which could otherwise be a bomb."""


class TorchZipFile:
    """One torch checkpoint (a TensorSource); tied tensors read the same storage twice.

    The top level is the state dict itself, or a dict without tensors of its own that has exactly
    one of `WRAPPERS`, which is then the state dict.
    """

    def __init__(self, path: Path) -> None:
        self._file = MappedFile(path)
        try:
            refuse_foreign(self._file)
            self._entries = read_stored_zip(self._file)
            self._folder = _find_folder(self._entries, self._file)
            self._stored = _state_dict(self._load_pickle(), path)
            self._places = {name: self._place(name, t) for name, t in self._stored.items()}
        except BaseException:
            self._file.close()
            raise
        self._tensors = {name: _info(name, tensor) for name, tensor in self._stored.items()}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._tensors)

    def read(self, name: str) -> NDArray[Any]:
        if name not in self._tensors:
            raise refusal(self._file.path, f"there is no tensor named {quoted(name)}")
        tensor, offset = self._stored[name], self._places[name]
        if _is_contiguous(tensor):
            return self._file.array(offset, dtype=tensor.dtype, shape=tensor.shape)
        window = self._file.array(offset, dtype=tensor.dtype, shape=(_span(tensor),))
        strides = [stride * tensor.dtype.itemsize for stride in tensor.strides]
        return np.ascontiguousarray(np.lib.stride_tricks.as_strided(window, tensor.shape, strides))

    def close(self) -> None:
        self._file.close()

    def _load_pickle(self) -> object:
        entry = self._entries[f"{self._folder}data.pkl"]
        if entry.length > MAX_PICKLE_BYTES:
            reason = f"a data.pkl of {entry.length:,} bytes, more than any list of tensors needs"
            raise refusal(self._file.path, reason)
        try:
            return read_state_pickle(self._file.raw(entry.offset, entry.length))
        except StatePickleError as error:
            raise refusal(self._file.path, str(error)) from error

    def _place(self, name: str, tensor: StoredTensor) -> int:
        """Where the first element of the tensor lies in the file, after all bounds checks."""
        storage = tensor.storage
        entry = self._entries.get(f"{self._folder}data/{storage.key}")
        if entry is None:
            raise refusal(self._file.path, f"the bytes of tensor {quoted(name)} are missing")
        size = storage.num_elements * storage.dtype.itemsize
        start = tensor.offset * tensor.dtype.itemsize
        if entry.length != size or start + _span(tensor) * tensor.dtype.itemsize > size:
            raise refusal(self._file.path, f"tensor {quoted(name)} reaches past its bytes")
        if not is_addressable(tensor.shape) or _num_bytes(tensor) > max(size, _MAX_EXPANDED_BYTES):
            raise refusal(self._file.path, f"tensor {quoted(name)} is larger than its bytes")
        return entry.offset + start


def open_torch_folder(folder: Path) -> TensorSource:
    """`pytorch_model.bin` in `folder`, or all shards of `pytorch_model.bin.index.json`."""
    single = folder / "pytorch_model.bin"
    if os.path.lexists(single):
        return TorchZipFile(weights_file(folder, single.name))
    return open_shards(folder / "pytorch_model.bin.index.json", TorchZipFile, suffix=".bin")


def _find_folder(entries: Mapping[str, Extent], file: MappedFile) -> str:
    """The prefix of all entries ("archive/" or the file's name), proven to be a torch one."""
    folders = [name[: -len("data.pkl")] for name in entries if name.endswith("/data.pkl")]
    if len(folders) != 1:
        raise refusal(file.path, "a ZIP file that is not a torch checkpoint; unpack it first")
    folder = folders[0]
    order = entries.get(f"{folder}byteorder")
    if order is not None and file.raw(order.offset, min(order.length, 16)) != b"little":
        raise refusal(file.path, "weights in big-endian byte order; save them on another machine")
    return folder


def _state_dict(top: object, path: Path) -> dict[str, StoredTensor]:
    """The tensors by name; values that are no tensors stand for nothing in a model."""
    if isinstance(top, dict) and not _tensors_of(top):
        wrapped = [key for key in WRAPPERS if isinstance(top.get(key), dict)]
        if len(wrapped) == 1:
            top = top[wrapped[0]]
    tensors = _tensors_of(top) if isinstance(top, dict) else {}
    if not tensors:
        kind = type(top).__name__
        keys = f" with {listed([quoted(key) for key in top])}" if isinstance(top, dict) else ""
        raise refusal(path, f"no state dict: its top level is a {kind}{keys} without tensors")
    for name in tensors:
        if not isinstance(name, str) or not name or has_control_characters(name):
            raise refusal(path, f"a tensor is named {quoted(name)}")
    return tensors


def _tensors_of(values: dict[Any, Any]) -> dict[Any, StoredTensor]:
    return {name: value for name, value in values.items() if isinstance(value, StoredTensor)}


def _info(name: str, tensor: StoredTensor) -> TensorInfo:
    return TensorInfo(
        name=name,
        shape=tensor.shape,
        dtype=tensor.dtype,
        stored=f"torch.{tensor.dtype.name}",
        num_bytes=_num_bytes(tensor),
    )


def _num_bytes(tensor: StoredTensor) -> int:
    return math.prod(tensor.shape) * tensor.dtype.itemsize


def _span(tensor: StoredTensor) -> int:
    """Elements from the first to the last one that the tensor touches."""
    if 0 in tensor.shape:
        return 0
    steps = zip(tensor.shape, tensor.strides, strict=True)
    return 1 + sum((size - 1) * stride for size, stride in steps)


def _is_contiguous(tensor: StoredTensor) -> bool:
    expected = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.strides), strict=True):
        if size != 1 and stride != expected and 0 not in tensor.shape:
            return False
        expected *= size
    return True
