"""Which tensors of a model are quantized to how many bits, and one tensor made into a leaf."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.layouts import matrix_shape
from bluejay.checkpoints.packing import (
    INT4,
    INT4_OFFSET,
    INT8,
    PART_DTYPES,
    Packing,
    may_be_packed,
    num_not_finite,
)
from bluejay.core.errors import CheckpointError, UsageError
from bluejay.model.config import DecoderConfig
from bluejay.model.params import named_leaves
from bluejay.model.specs import ParamSpec, decoder_specs
from bluejay.nn.block_rounding import Rounded, round_rows
from bluejay.nn.error_compensation import Compensation, round_compensated
from bluejay.nn.quantized import GROUP, QuantizedWeight, pack_codes, pack_scales

# Rows are rounded in slices of about this many weights: 16 MB of float32.
_SLICE_WEIGHTS = 2**22
# The largest share of the error comes from the tensors that touch the vocabulary.
_KEPT_WIDE = ("embedding", "head")


def packing_plan(config: DecoderConfig, *, bits: int, has_offsets: bool) -> dict[str, Packing]:
    """The packing of every matrix; embedding and head have 8 bits, whatever the others have.

    Norms, biases, learned positions, and matrices whose inputs are no multiple of 32 are absent:
    they stay as they are. Raises UsageError for other widths, and if nothing is left.
    """
    kinds = {8: INT8, 4: INT4_OFFSET if has_offsets else INT4}
    if bits not in kinds:
        raise UsageError(f"Weights are quantized to 8 or 4 bits, not to {bits}.")
    plan = {
        name: INT8 if name in _KEPT_WIDE else kinds[bits]
        for name, spec in named_leaves(decoder_specs(config)).items()
        if may_be_packed(name, spec)
    }
    if not plan:
        raise UsageError(
            f"No matrix of this model has inputs in whole blocks of 32 (its width is "
            f"{config.embed_dim}): it cannot be quantized."
        )
    return plan


def quantize_tensor(
    name: str,
    values: NDArray[Any],
    spec: ParamSpec,
    packing: Packing,
    *,
    known: Compensation | None = None,
) -> QuantizedWeight:
    """The leaf, of NumPy arrays; with `known` inputs its rounding errors are compensated.

    Works through slices of rows, so that beside the leaf itself 100 MB are enough. Raises
    CheckpointError for values that are not finite, or too large for a float16 scale.
    """
    outputs, inputs = matrix_shape(spec)
    rows = values.reshape(outputs, inputs)
    parts: dict[str, NDArray[Any]] = {
        part: np.empty(shape, PART_DTYPES[part]) for part, shape in packing.shapes(spec).items()
    }
    step = max(GROUP, _SLICE_WEIGHTS // inputs // GROUP * GROUP)
    for begin in range(0, outputs, step):
        piece = np.ascontiguousarray(rows[begin : begin + step], np.float32)
        if not np.isfinite(piece).all():
            raise CheckpointError(
                f"{name} holds values that are no finite numbers: it cannot be quantized."
            )
        rounded = _rounded(piece, packing, known)
        groups = slice(begin // GROUP, begin // GROUP + -(-len(piece) // GROUP))
        for part, packed in _packed(rounded, packing).items():
            parts[part][groups] = packed
    if any(num_not_finite(parts[part]) for part in parts if part != "codes"):
        largest = float(np.abs(np.asarray(rows, np.float32)).max())
        raise CheckpointError(
            f"{name} holds {largest:g}, which no 16-bit scale reaches: it cannot be quantized."
        )
    return packing.leaf(parts, spec)


def _rounded(piece: NDArray[np.float32], packing: Packing, known: Compensation | None) -> Rounded:
    if known is None:
        return round_rows(piece, bits=packing.bits, has_offsets=packing.has_offsets)
    return round_compensated(piece, known, bits=packing.bits, has_offsets=packing.has_offsets)


def _packed(rounded: Rounded, packing: Packing) -> Mapping[str, NDArray[Any]]:
    parts: dict[str, NDArray[Any]] = {
        "codes": pack_codes(rounded.codes, bits=packing.bits),
        "scales": pack_scales(rounded.scales),
    }
    if rounded.offsets is not None:
        parts["offsets"] = pack_scales(rounded.offsets)
    return parts
