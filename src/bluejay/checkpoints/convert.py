"""Convert a stored model to the Hugging Face or the native format, tensor by tensor."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.conversion import published_tensors
from bluejay.checkpoints.families import family_of, write_config
from bluejay.checkpoints.model_files import ModelFiles, open_model
from bluejay.checkpoints.native import native_writer, seal, write_config_file
from bluejay.checkpoints.packing import PACKINGS, parts_of
from bluejay.checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec
from bluejay.checkpoints.tables import TABLES
from bluejay.core.errors import CheckpointError, UsageError
from bluejay.core.files import new_folder, write_text_durably
from bluejay.vocab.tokenizer import Tokenizer

Target = Literal["hf", "native"]
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# Hugging Face splits files at this size.
MAX_SHARD_BYTES = 5 * 10**9
# Values are cast and compared in blocks of about this many bytes of float32.
_BLOCK_BYTES = 32 * 2**20

OnTensor = Callable[[str, int, int], None]
"""Called after each tensor with its name, and the bytes written so far and in all."""


@dataclass(frozen=True, kw_only=True)
class ParityReport:
    """What was written, read back from the disk and compared with the source.

    `num_equal` tensors have the very values of the source; the others were rounded to a narrower
    dtype, by `largest_rounding` at most, relative to the largest value of their tensor.
    """

    destination: Path
    format: Target
    family: str
    num_tensors: int
    num_parameters: int
    num_bytes: int
    dtypes: Mapping[str, int]
    num_equal: int
    largest_rounding: float
    tokenizer_size: int | None
    seconds: float


def convert(
    source: Path,
    destination: Path,
    *,
    to: Target,
    dtype: str | None = None,
    on_tensor: OnTensor | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> ParityReport:
    """Write `source` anew at `destination`, then read it back and compare every value.

    `dtype` None keeps each tensor's own, packed ones included; those of other blocks, and all of
    a Hugging Face folder, become float32, which holds their values exactly. Hugging Face folders
    are split into files of at most `max_shard_bytes`. Needs the memory of one tensor. Raises
    UsageError for a wrong target or an occupied destination, CheckpointError for a bad source or
    values that the dtype cannot hold, DiskError for a failed write; then nothing is left at the
    destination.
    """
    if to not in get_args(Target):
        raise UsageError(f"A model is converted to 'hf' or 'native', not to {to!r}.")
    if dtype is not None and dtype not in DTYPES:
        raise UsageError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    began = time.monotonic()
    model = open_model(source)
    try:
        report = write_model(
            model,
            destination,
            to=to,
            dtype=dtype,
            on_tensor=on_tensor,
            max_shard_bytes=max_shard_bytes,
        )
        return _compared(model, report, began)
    finally:
        model.close()


def write_model(
    model: ModelFiles,
    destination: Path,
    *,
    to: Target,
    dtype: str | None = None,
    on_tensor: OnTensor | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """As `convert`, for an opened model and without reading it back. Gives the destination."""
    keep_packed = to == "native" and dtype is None
    dtypes = {
        name: DTYPES[dtype] if dtype else info.dtype
        for name, info in model.source.tensors.items()
        if not (keep_packed and info.packing)
    }
    tokenizer = model.tokenizer()
    with new_folder(destination) as folder:
        if to == "native":
            sums = _write_native(model, folder, dtypes, on_tensor)
            if tokenizer is not None:
                tokenizer.save(folder)
            seal(folder, known=sums)
        else:
            _write_hugging_face(model, folder, dtypes, on_tensor, max_shard_bytes)
            if tokenizer is not None:
                tokenizer.save(folder)
    return destination


def _write_native(
    model: ModelFiles,
    folder: Path,
    dtypes: Mapping[str, np.dtype[Any]],
    on_tensor: OnTensor | None,
) -> dict[str, str]:
    """Write config and weights; gives the sha256 of the weights file, computed on the way.

    Tensors without a dtype stay packed.
    """
    packing = {
        name: PACKINGS[info.packing]
        for name, info in model.source.tensors.items()
        if info.packing is not None and name not in dtypes
    }
    write_config_file(folder, family=model.family, config=model.config, packing=packing)
    with native_writer(folder, model.config, dtypes, packing) as writer:
        count = _Counted(writer, on_tensor)
        for name in writer.order:
            path, _, part = name.rpartition(".")
            if path in packing:
                whole = parts_of(model.source.read_packed(path))[part]
                count.write(name, iter([whole]))
            else:
                count.write(name, _cast(name, model.source.read(name), dtypes[name]))
    return {file.path.name: file.sha256 for file in writer.written}


def _write_hugging_face(
    model: ModelFiles,
    folder: Path,
    dtypes: Mapping[str, np.dtype[Any]],
    on_tensor: OnTensor | None,
    max_shard_bytes: int,
) -> None:
    family = model.family if model.family in TABLES else family_of(model.config)
    tensors = {item.name: item for item in published_tensors(TABLES[family], model.config)}
    specs = [
        TensorSpec(name=name, shape=item.shape, dtype=_widest(dtypes[n] for n in item.native))
        for name, item in tensors.items()
    ]
    _write_hf_config(model, family, folder, max((s.dtype for s in specs), key=_width))
    with SafetensorsWriter(folder, specs, max_shard_bytes=max_shard_bytes) as writer:
        count, wanted = _Counted(writer, on_tensor), {spec.name: spec.dtype for spec in specs}
        for name in writer.order:
            item = tensors[name]
            parts = [model.source.read(part) for part in item.native]
            joined = item.layout.join(parts, item.specs, model.config)
            count.write(name, _cast(name, joined, wanted[name]))


def _write_hf_config(model: ModelFiles, family: str, folder: Path, dtype: np.dtype[Any]) -> None:
    tokenizer = model.tokenizer()
    ids = _token_ids(tokenizer)
    config = write_config(family, model.config) | ids | {"torch_dtype": dtype.name}
    write_text_durably(folder / "config.json", json.dumps(config, indent=2, sort_keys=True) + "\n")
    stops = sorted(tokenizer.stop_ids) if tokenizer else []
    generation: dict[str, Any] = dict(ids)
    if len(stops) > 1:
        generation["eos_token_id"] = stops
    document = json.dumps({"_from_model_config": True, **generation}, indent=2, sort_keys=True)
    write_text_durably(folder / "generation_config.json", document + "\n")


def _token_ids(tokenizer: Tokenizer | None) -> dict[str, int]:
    if tokenizer is None:
        return {}
    named = {
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
        "pad_token_id": tokenizer.pad_id,
    }
    return {key: value for key, value in named.items() if value is not None}


class _Counted:
    """Writes tensors and reports how far it is."""

    def __init__(self, writer: SafetensorsWriter, on_tensor: OnTensor | None) -> None:
        self._writer, self._on_tensor, self._done = writer, on_tensor, 0

    def write(self, name: str, blocks: Iterator[NDArray[Any]]) -> None:
        self._writer.write(name, self._counted(blocks))
        if self._on_tensor is not None:
            self._on_tensor(name, self._done, self._writer.num_bytes)

    def _counted(self, blocks: Iterator[NDArray[Any]]) -> Iterator[NDArray[Any]]:
        for block in blocks:
            self._done += block.nbytes
            yield block


def _cast(name: str, array: NDArray[Any], dtype: np.dtype[Any]) -> Iterator[NDArray[Any]]:
    """The array in blocks of rows, each cast; values that overflow are refused."""
    for block in _row_blocks(array):
        if block.dtype == dtype:
            yield block
            continue
        with np.errstate(over="ignore"):
            cast = block.astype(dtype)
        if _width(dtype) < _width(block.dtype) or dtype == np.float16:
            lost = np.isfinite(block) & ~np.isfinite(cast)
            if lost.any():
                value = float(np.asarray(block)[lost].flat[0])
                raise CheckpointError(
                    f"{name} holds {value:g}, which {dtype.name} cannot: choose a wider dtype."
                )
        yield cast


def _row_blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    if array.ndim == 0 or array.size * 4 <= _BLOCK_BYTES:
        yield array
        return
    rows = max(1, _BLOCK_BYTES // max(1, 4 * array[0].size))
    for begin in range(0, len(array), rows):
        yield array[begin : begin + rows]


def _widest(dtypes: Iterator[np.dtype[Any]]) -> np.dtype[Any]:
    return max(dtypes, key=_width)


def _width(dtype: np.dtype[Any]) -> int:
    return dtype.itemsize


def _compared(model: ModelFiles, destination: Path, began: float) -> ParityReport:
    written = open_model(destination)
    try:
        differences = [
            _difference(model.source.read(name), written.source.read(name))
            for name in written.source.tensors
        ]
        infos = list(written.source.tensors.values())
        tokenizer = written.tokenizer()
        return ParityReport(
            destination=destination,
            format="native" if written.format == "native" else "hf",
            family=written.family,
            num_tensors=len(infos),
            num_parameters=sum(int(np.prod(info.shape, dtype=np.int64)) for info in infos),
            num_bytes=sum(f.stat().st_size for f in destination.iterdir()),
            dtypes=Counter(info.packing or info.dtype.name for info in infos),
            num_equal=sum(difference == 0.0 for difference in differences),
            largest_rounding=max(differences),
            tokenizer_size=tokenizer.vocab_size if tokenizer else None,
            seconds=time.monotonic() - began,
        )
    finally:
        written.close()


def _difference(before: NDArray[Any], after: NDArray[Any]) -> float:
    """Largest difference relative to the largest value; NaN in the same place counts as equal."""
    largest, scale = 0.0, 0.0
    for old, new in zip(_row_blocks(before), _row_blocks(after), strict=True):
        if old.dtype == new.dtype and np.array_equal(_bits(old), _bits(new)):
            continue
        wide, found = old.astype(np.float32), new.astype(np.float32)
        gap = np.where((wide == found) | (np.isnan(wide) & np.isnan(found)), 0, wide - found)
        largest = max(largest, float(np.abs(gap).max()))
        scale = max(scale, float(np.abs(wide[np.isfinite(wide)]).max(initial=0.0)))
    return largest / scale if largest else 0.0


def _bits(array: NDArray[Any]) -> NDArray[Any]:
    return np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
