"""Write safetensors files tensor by tensor, in the memory of one block of rows.

Names, shapes and dtypes are known before the first byte, so the header and the split into shards
are fixed first. Then tensors arrive in `order`; sha256 is computed on the way, so that manifests
need no second read. Everything goes to temporary names and is renamed at the end.
"""

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.safetensors_file import DTYPES, MAX_HEADER_BYTES, MAX_TENSORS
from bluejay.core.errors import DiskError, UsageError

ALIGNMENT = 64
"""A tensor at a multiple of 64 bytes is given to a device without a copy."""
_BLOCK_BYTES = 16 * 2**20
_TILE = 64
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def num_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class WrittenFile:
    """A finished file: its final path, its size, and the sha256 of its bytes in hexadecimal."""

    path: Path
    num_bytes: int
    sha256: str


class SafetensorsWriter:
    """Writes `STEM.safetensors`, or shards of at most `max_shard_bytes` with their index.

    Use it as a context manager and `write` the tensors named by `order`, in that order. On leaving
    without an error the files are renamed into place, the index last, and `written` lists them; on
    an error nothing but the temporary files was touched, and those are removed.

    safetensors allows no gap between tensors, so within a file those whose size is a multiple of
    64 come first and all start aligned; the rest follow by falling power-of-two factor of their
    sizes, which keeps each aligned to its own elements.
    """

    def __init__(
        self,
        folder: Path,
        tensors: Sequence[TensorSpec],
        *,
        metadata: Mapping[str, str] | None = None,
        max_shard_bytes: int | None = None,
        stem: str = "model",
    ) -> None:
        _check_specs(tensors)
        self._folder, self._stem = folder, stem
        shards = [_aligned_first(s) for s in plan_shards(tensors, max_shard_bytes=max_shard_bytes)]
        names = _shard_names(stem, len(shards))
        self._headers = [_header(shard, {"format": "pt", **(metadata or {})}) for shard in shards]
        self._shards = dict(zip(names, shards, strict=True))
        self.order: tuple[str, ...] = tuple(s.name for shard in shards for s in shard)
        self.written: tuple[WrittenFile, ...] = ()
        self.num_bytes = sum(map(len, self._headers)) + sum(spec.num_bytes for spec in tensors)
        self._queue: Iterator[tuple[str, TensorSpec]] = iter(
            [(name, spec) for name, shard in self._shards.items() for spec in shard]
        )
        self._file: _HashedFile | None = None
        self._finished: list[_HashedFile] = []

    def __enter__(self) -> "SafetensorsWriter":
        _make_room(self._folder, self.num_bytes)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            for file in [*self._finished, *([self._file] if self._file else [])]:
                file.discard()

    def write(self, name: str, data: NDArray[Any] | Iterable[NDArray[Any]]) -> None:
        """Append one tensor, whole or as consecutive blocks of its rows."""
        shard, spec = next(self._queue, (None, None))
        if shard is None or spec is None or spec.name != name:
            due = "nothing more" if spec is None else spec.name
            raise UsageError(f"tensor {name!r} was written where {due!r} is due; follow `order`")
        self._open_shard(shard)
        assert self._file is not None
        blocks = _row_blocks(data) if isinstance(data, np.ndarray) else _fit_blocks(data, spec)
        if isinstance(data, np.ndarray) and data.shape != spec.shape:
            raise _mismatch(spec, f"shape {data.shape}")
        num_bytes = 0
        for block in blocks:
            if block.dtype != spec.dtype:
                raise _mismatch(spec, f"dtype {block.dtype}")
            num_bytes += block.nbytes
            if num_bytes > spec.num_bytes:
                break
            self._file.write(_contiguous(block).reshape(-1).view(np.uint8))
        if num_bytes != spec.num_bytes:
            raise _mismatch(spec, f"{num_bytes:,} or more of {spec.num_bytes:,} bytes")

    def _open_shard(self, name: str) -> None:
        if self._file is not None and self._file.path.name == name:
            return
        if self._file is not None:
            self._file.finish()
            self._finished.append(self._file)
            self._file = None
        self._file = _HashedFile(self._folder / name, needed=self.num_bytes)
        self._file.write(self._headers[len(self._finished)])

    def _commit(self) -> None:
        missing = next(self._queue, None)
        if missing is not None:
            raise UsageError(f"tensor {missing[1].name!r} was announced and never written")
        if self._file is None:  # a model without tensors still has a header
            self._open_shard(next(iter(self._shards)))
        assert self._file is not None
        self._file.finish()
        files = [*self._finished, self._file]
        if len(files) > 1:
            index = _HashedFile(self._folder / f"{self._stem}.safetensors.index.json", needed=0)
            files.append(index)
            self._finished.append(index)
            index.write(_index(self._shards))
            index.finish()
        self.written = tuple(file.commit() for file in files)
        _sync_folder(self._folder)


def plan_shards(
    tensors: Sequence[TensorSpec], *, max_shard_bytes: int | None
) -> list[list[TensorSpec]]:
    """Consecutive groups of at most `max_shard_bytes`; a larger tensor gets a shard of its own."""
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in tensors:
        if max_shard_bytes is not None and shards[-1] and size + spec.num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.num_bytes
    return shards


class _HashedFile:
    """A file under a temporary name in its final folder, hashed while it is written."""

    def __init__(self, path: Path, *, needed: int) -> None:
        self.path = path
        self._needed = needed
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._hash = hashlib.sha256()
        # Hashing runs beside writing: neither holds the interpreter's lock, and each alone takes
        # about half of the time.
        self._hasher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sha256")
        self._hashed: Future[None] | None = None
        self._size = 0
        self._committed = False
        try:
            self._stream: BinaryIO = self._temporary.open("wb", buffering=0)
        except OSError as error:
            raise self._failure(error) from error

    def write(self, data: bytes | NDArray[np.uint8]) -> None:
        view = data.data if isinstance(data, np.ndarray) else memoryview(data)
        self._wait_for_hash()
        self._hashed = self._hasher.submit(self._hash.update, view)
        self._size += len(view)
        try:
            while len(view):  # one call writes at most 2 GiB on Linux
                view = view[self._stream.write(view) :]
        except OSError as error:
            raise self._failure(error) from error

    def finish(self) -> None:
        self._wait_for_hash()
        self._hasher.shutdown()
        try:
            os.fsync(self._stream.fileno())
            self._stream.close()
        except OSError as error:
            raise self._failure(error) from error

    def commit(self) -> WrittenFile:
        try:
            self._temporary.replace(self.path)
        except OSError as error:
            raise self._failure(error) from error
        self._committed = True
        return WrittenFile(path=self.path, num_bytes=self._size, sha256=self._hash.hexdigest())

    def discard(self) -> None:
        self._hasher.shutdown()
        self._stream.close()
        if not self._committed:
            self._temporary.unlink(missing_ok=True)

    def _wait_for_hash(self) -> None:
        """One block at a time: the memory of two blocks is the most that is held."""
        if self._hashed is not None:
            self._hashed.result()
            self._hashed = None

    def _failure(self, error: OSError) -> DiskError:
        if error.errno in _FULL:
            return DiskError(
                f"{self.path}: the disk is full ({error.strerror}) after {self._size:,} bytes; "
                f"{max(self._needed, self._size):,} bytes are needed in all"
            )
        return DiskError(f"{self.path}: cannot be written ({error.strerror})")


def _check_specs(tensors: Sequence[TensorSpec]) -> None:
    names = [spec.name for spec in tensors]
    if len(set(names)) < len(names):
        repeated = next(name for name in names if names.count(name) > 1)
        raise UsageError(f"tensor {repeated!r} is announced twice; names must differ")
    if len(names) > MAX_TENSORS:
        raise UsageError(f"{len(names):,} tensors are more than the {MAX_TENSORS:,} of one model")
    for spec in tensors:
        if spec.dtype not in _NAMES:
            raise UsageError(f"tensor {spec.name!r}: safetensors has no dtype {spec.dtype}")


def _aligned_first(shard: Sequence[TensorSpec]) -> list[TensorSpec]:
    # The lowest set bit is the largest power of two that divides the size; 0 divides by all.
    return sorted(shard, key=lambda s: -min(ALIGNMENT, s.num_bytes & -s.num_bytes or ALIGNMENT))


def _shard_names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _header(shard: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, padded with spaces so that the first tensor starts aligned."""
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    position = 0
    for spec in shard:
        end = position + spec.num_bytes
        entries[spec.name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise UsageError(
            f"the names of {len(shard):,} tensors need a header of {len(text):,} bytes"
        )
    return len(text).to_bytes(8, "little") + text


def _index(shards: Mapping[str, Sequence[TensorSpec]]) -> bytes:
    weight_map = {spec.name: name for name, shard in shards.items() for spec in shard}
    total = sum(spec.num_bytes for shard in shards.values() for spec in shard)
    document = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def _row_blocks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """The array in blocks of rows of about 16 MiB, so that a view is never copied whole."""
    if array.ndim == 0 or array.flags.c_contiguous or array.nbytes <= _BLOCK_BYTES:
        yield array
        return
    rows = max(1, _BLOCK_BYTES * array.shape[0] // array.nbytes)
    for start in range(0, array.shape[0], rows):
        yield array[start : start + rows]


def _contiguous(block: NDArray[Any]) -> NDArray[Any]:
    """The block in C order; a transposed matrix is copied in tiles, 5 times as fast as in rows."""
    if block.ndim != 2 or block.flags.c_contiguous:
        return np.ascontiguousarray(block)
    out = np.empty(block.shape, block.dtype)
    for row in range(0, block.shape[0], _TILE):
        for column in range(0, block.shape[1], _TILE):
            tile = np.s_[row : row + _TILE, column : column + _TILE]
            out[tile] = block[tile]
    return out


def _fit_blocks(blocks: Iterable[NDArray[Any]], spec: TensorSpec) -> Iterator[NDArray[Any]]:
    for block in blocks:
        if block.ndim != len(spec.shape) or block.shape[1:] != spec.shape[1:]:
            raise _mismatch(spec, f"a block of shape {block.shape}")
        yield block


def _mismatch(spec: TensorSpec, found: str) -> UsageError:
    return UsageError(
        f"tensor {spec.name!r} was announced as {spec.dtype} of shape {spec.shape}, not {found}"
    )


def _make_room(folder: Path, needed: int) -> None:
    """The folder exists and its disk has `needed` bytes free, before anything is written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise DiskError(f"{folder}: cannot be written ({error.strerror})") from error
    if free < needed:
        raise DiskError(f"{folder}: {needed:,} bytes are needed and {free:,} are free on its disk")


def _sync_folder(folder: Path) -> None:
    """Make the renames survive a power cut; Windows cannot open a folder and does not need it."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
