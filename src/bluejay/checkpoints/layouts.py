"""How published tensors hold ours: reshaped, transposed, or several in one.

A layout is a pair of functions on NumPy arrays. `take` cuts one native tensor out of the
published one, as a view where possible; `join` makes the published tensor from its native parts.

Axes: N query heads  K key/value heads  H head width  D embed
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluejay.model.config import DecoderConfig
from bluejay.model.specs import ParamSpec

Values = NDArray[Any]
Shape = tuple[int, ...]

# CodeGen's fused projection is laid out for four cores of the machine it was trained on, each
# with a query, a value and a key part, in this order (modeling_codegen.py, mp_num).
_CODEGEN_CORES = 4
_CODEGEN_ORDER = (0, 2, 1)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """`shape` is the published tensor's; `take(array, part, specs, config)` gives native part
    number `part`; `join(parts, specs, config)` inverts it.

    `rows(number, config)` gives the published rows in native order where a layout moves whole
    rows and nothing else, so that rows of blocks can be moved undecoded; else it is None."""

    shape: Callable[[Sequence[ParamSpec], DecoderConfig], Shape]
    take: Callable[[Values, int, Sequence[ParamSpec], DecoderConfig], Values]
    join: Callable[[Sequence[Values], Sequence[ParamSpec], DecoderConfig], Values]
    rows: Callable[[int, DecoderConfig], NDArray[np.int64]] | None = None


def matrix_shape(spec: ParamSpec) -> Shape:
    """(outputs, inputs) of a weight whose output axes stand first."""
    inner = spec.axes.index("embed") if spec.axes[0] != "embed" else 1
    return math.prod(spec.shape[:inner]), math.prod(spec.shape[inner:])


def _flat_shape(specs: Sequence[ParamSpec]) -> Shape:
    spec = specs[0]
    return matrix_shape(spec) if spec.decay else (math.prod(spec.shape),)


def _fused_shape(specs: Sequence[ParamSpec]) -> Shape:
    rows, *columns = _flat_shape(specs)
    return (3 * rows, *columns)


def _reshape(array: Values, part: int, specs: Sequence[ParamSpec], _: DecoderConfig) -> Values:
    return array.reshape(specs[part].shape)


def _flatten(parts: Sequence[Values], specs: Sequence[ParamSpec], _: DecoderConfig) -> Values:
    return parts[0].reshape(_flat_shape(specs))


def _transpose_in(array: Values, part: int, specs: Sequence[ParamSpec], _: DecoderConfig) -> Values:
    return array.T.reshape(specs[part].shape)


def _transpose_out(
    parts: Sequence[Values], specs: Sequence[ParamSpec], config: DecoderConfig
) -> Values:
    return _flatten(parts, specs, config).T


def _codegen_take(array: Values, part: int, specs: Sequence[ParamSpec], _: DecoderConfig) -> Values:
    rows = array.shape[0] // (3 * _CODEGEN_CORES)
    by_core = array.reshape(_CODEGEN_CORES, 3, rows, array.shape[1])
    return by_core[:, _CODEGEN_ORDER[part]].reshape(specs[part].shape)


def _codegen_join(parts: Sequence[Values], specs: Sequence[ParamSpec], _: DecoderConfig) -> Values:
    inputs = matrix_shape(specs[0])[1]
    by_core = [part.reshape(_CODEGEN_CORES, -1, inputs) for part in parts]
    ordered = [by_core[_CODEGEN_ORDER.index(place)] for place in range(3)]
    return np.stack(ordered, axis=1).reshape(_fused_shape(specs))


def _by_head_take(
    array: Values, part: int, specs: Sequence[ParamSpec], config: DecoderConfig
) -> Values:
    heads, width = config.num_heads, config.head_dim
    grouped = array.reshape(heads, 3, width, *array.shape[1:])
    return grouped[:, part].reshape(specs[part].shape)


def _by_head_join(
    parts: Sequence[Values], specs: Sequence[ParamSpec], config: DecoderConfig
) -> Values:
    heads, width = config.num_heads, config.head_dim
    rest = _flat_shape(specs)[1:]
    grouped = [part.reshape(heads, width, *rest) for part in parts]
    return np.stack(grouped, axis=1).reshape(_fused_shape(specs))


def _by_part_take(array: Values, part: int, specs: Sequence[ParamSpec], _: DecoderConfig) -> Values:
    columns = array if array.ndim == 1 else array.T
    return np.split(columns, 3)[part].reshape(specs[part].shape)


def _by_part_join(parts: Sequence[Values], specs: Sequence[ParamSpec], _: DecoderConfig) -> Values:
    fused = np.concatenate(parts).reshape(_fused_shape(specs))
    return fused if fused.ndim == 1 else fused.T


def _interleaved_take(
    array: Values, part: int, specs: Sequence[ParamSpec], config: DecoderConfig
) -> Values:
    """GGUF holds Llama's q and k rows in interleaved rotary pairs; ours turn halves."""
    return array[_interleaved_rows(len(array), config)].reshape(specs[part].shape)


def _interleaved_rows(number: int, config: DecoderConfig) -> NDArray[np.int64]:
    paired = np.arange(number).reshape(-1, config.head_dim // 2, 2)
    return paired.swapaxes(1, 2).reshape(-1)


def _all_rows(number: int, _: DecoderConfig) -> NDArray[np.int64]:
    return np.arange(number)


def _interleaved_join(
    parts: Sequence[Values], specs: Sequence[ParamSpec], config: DecoderConfig
) -> Values:
    halves = parts[0].reshape(-1, 2, config.head_dim // 2, parts[0].shape[-1])
    return halves.swapaxes(1, 2).reshape(_flat_shape(specs))


LAYOUTS: dict[str, Layout] = {
    # (outputs, inputs), or a vector: only the axes are grouped differently.
    "same": Layout(shape=lambda s, _: _flat_shape(s), take=_reshape, join=_flatten, rows=_all_rows),
    # (inputs, outputs): GPT-2's Conv1D, and the original's Haiku linears.
    "transposed": Layout(
        shape=lambda s, _: _flat_shape(s)[::-1], take=_transpose_in, join=_transpose_out
    ),
    # One matrix for query, key and value.
    "codegen_fused": Layout(
        shape=lambda s, _: _fused_shape(s), take=_codegen_take, join=_codegen_join
    ),
    "fused_by_head": Layout(
        shape=lambda s, _: _fused_shape(s), take=_by_head_take, join=_by_head_join
    ),
    "fused_transposed": Layout(
        shape=lambda s, _: _fused_shape(s)[::-1], take=_by_part_take, join=_by_part_join
    ),
    "interleaved_rows": Layout(
        shape=lambda s, _: _flat_shape(s),
        take=_interleaved_take,
        join=_interleaved_join,
        rows=_interleaved_rows,
    ),
}
