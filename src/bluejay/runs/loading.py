"""Bring a stored model onto the device."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from numpy.typing import NDArray

from bluejay.checkpoints.convert import DTYPES
from bluejay.checkpoints.model_files import ModelFiles
from bluejay.checkpoints.tensor_source import TensorInfo
from bluejay.core.errors import MemoryLimitError, UsageError
from bluejay.core.large_pages import ALIGNMENT, LargePageArena, arena_bytes
from bluejay.kernels.decoding import CACHE_DTYPES
from bluejay.model.params import DecoderParams, map_named, named_leaves
from bluejay.model.specs import decoder_specs, parameter_count
from bluejay.nn.quantized import QuantizedWeight
from bluejay.runs.device_memory import free_bytes
from bluejay.runs.mesh_loading import MeshPlacement

OnTensor = Callable[[int, int], None]
"""Called after each tensor with the parameters loaded so far and in all."""


def load_params(
    model: ModelFiles,
    *,
    dtype: str | None = None,
    on_tensor: OnTensor | None = None,
    mesh: Mesh | None = None,
) -> DecoderParams:
    """All parameters in one dtype, tensor by tensor.

    `dtype` None is float32 on CPU, where narrower products are converted at every call, and
    bfloat16 elsewhere; and on CPU it keeps quantized tensors packed, as `Int8` and `Int4` leaves.
    A tensor that the file holds in that form, aligned to 64 bytes, is mapped and not copied; the
    others lie in large pages. Over a mesh none stays packed, each device has its share, and the
    shapes are those of `model.partition`. Raises MemoryLimitError before the first tensor if they
    cannot fit, and UsageError for a decoder that the mesh's devices cannot share.
    """
    chosen = DTYPES[_require_dtype(dtype)]
    specs = decoder_specs(model.config)
    total = parameter_count(specs)
    infos = model.source.tensors
    keep_packed = dtype is None and mesh is None and jax.default_backend() == "cpu"
    packed = {name for name, info in infos.items() if keep_packed and info.packing is not None}
    place = _placement(model, packed, chosen, mesh)
    done = 0

    def load(path: str, spec: Any) -> jax.Array | QuantizedWeight:
        nonlocal done
        if path in packed:
            parts = model.source.read_packed(path)
            leaf: jax.Array | QuantizedWeight = jax.tree.map(place.as_it_is, parts)
        else:
            leaf = place.converted(path, model.source.read(path))
        done += math.prod(spec.shape)
        if on_tensor is not None:
            on_tensor(done, total)
        return leaf

    return map_named(load, specs)


def loaded_bytes(
    infos: Mapping[str, TensorInfo], packed: Collection[str], dtype: np.dtype[Any]
) -> int:
    """Bytes of all tensors on the device: packed ones as they are, the others in the dtype."""
    return sum(
        info.num_bytes if name in packed else math.prod(info.shape) * dtype.itemsize
        for name, info in infos.items()
    )


def _placement(
    model: ModelFiles, packed: Collection[str], dtype: np.dtype[Any], mesh: Mesh | None
) -> "_Placement | _OverMesh":
    """Once it is known that all of it fits."""
    if mesh is not None:
        over = MeshPlacement.of(model.config, mesh)
        _require_memory(model, over.bytes_per_device(dtype), mesh)
        return _OverMesh(over, dtype)
    infos = model.source.tensors
    _require_memory(model, loaded_bytes(infos, packed, dtype))
    return _Placement(infos, packed, dtype)


class _OverMesh:
    """Puts tensors on the devices of a mesh."""

    def __init__(self, placement: MeshPlacement, dtype: np.dtype[Any]) -> None:
        self._placement, self._dtype = placement, dtype

    def as_it_is(self, values: NDArray[Any]) -> jax.Array:
        raise AssertionError("packed tensors do not lie over a mesh")

    def converted(self, path: str, values: NDArray[Any]) -> jax.Array:
        return self._placement.put(path, values, self._dtype)


class _Placement:
    """Puts tensors on the device: on CPU those that are not mapped as they are into one arena."""

    def __init__(
        self, infos: Mapping[str, TensorInfo], packed: Collection[str], dtype: np.dtype[Any]
    ) -> None:
        self._dtype = dtype
        self._arena: LargePageArena | None = None
        if jax.default_backend() == "cpu":
            # Packed tensors have up to three parts, each of which begins aligned.
            sizes = (loaded_bytes({name: info}, packed, dtype) for name, info in infos.items())
            self._arena = LargePageArena(arena_bytes(size + 2 * ALIGNMENT for size in sizes))

    def as_it_is(self, values: NDArray[Any]) -> jax.Array:
        return self._put(values, values.dtype)

    def converted(self, path: str, values: NDArray[Any]) -> jax.Array:
        del path
        return self._put(values, self._dtype)

    def _put(self, values: NDArray[Any], dtype: np.dtype[Any]) -> jax.Array:
        is_mapped = not values.flags.writeable and values.dtype == dtype and _is_aligned(values)
        if self._arena is None or is_mapped or values.nbytes == 0:
            return on_device(values, dtype)
        return on_device(self._arena.copy(values, dtype), dtype)


def _is_aligned(values: NDArray[Any]) -> bool:
    return values.flags.c_contiguous and values.ctypes.data % ALIGNMENT == 0


def on_device(values: NDArray[Any], dtype: np.dtype[Any]) -> jax.Array:
    """The values as a device array; aliases host memory where dtype and alignment allow it."""
    if values.dtype != dtype:
        values = values.astype(dtype)
    placed: jax.Array = jax.device_put(np.ascontiguousarray(values))
    return placed


def require_cache_dtype(dtype: str | None) -> str | None:
    """The same, or UsageError for a type that keys and values cannot be kept in."""
    if dtype is not None and dtype not in CACHE_DTYPES:
        raise UsageError(f"cache_dtype must be one of {', '.join(CACHE_DTYPES)}, not {dtype!r}.")
    return dtype


def default_cache_dtype(params: DecoderParams) -> str:
    """float16 for packed weights, whose rounding of activations moves predictions ten thousand
    times as far (docs/lab-book.md, 2026-11-28); float32 for the others, which stay exact."""
    leaves = named_leaves(params).values()
    is_packed = any(isinstance(leaf, QuantizedWeight) for leaf in leaves)
    return "float16" if is_packed else "float32"


def _require_dtype(dtype: str | None) -> str:
    if dtype is None:
        return "float32" if jax.default_backend() == "cpu" else "bfloat16"
    if dtype not in DTYPES:
        raise UsageError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}.")
    return dtype


def _require_memory(model: ModelFiles, needed: int, mesh: Mesh | None = None) -> None:
    """`needed` is that of one device."""
    free = free_bytes(mesh)
    if needed <= free:
        return
    where, more = ("", "") if mesh is None else (" on each device", "more devices, ")
    there = len(jax.devices())
    if mesh is None and there > 1:
        more = f"to share it between the {there} devices here (--mesh model={there}), "
    raise MemoryLimitError(
        f"{model.path} needs {needed / 1e9:.1f} GB of memory for its weights{where}, and "
        f"{free / 1e9:.1f} GB are free: choose {more}a smaller model or a narrower dtype "
        "(`bluejay doctor` shows what fits)."
    )
