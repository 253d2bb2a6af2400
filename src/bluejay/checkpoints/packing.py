"""The ways to pack a weight into blocks, by name, and which tensors may be packed.

A name stands in `config.json` of a packed folder and in TensorInfo; what it means is fixed by
`bluejay.nn.quantized`, which the kernels share.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.layouts import matrix_shape
from bluejay.checkpoints.refusal import quoted
from bluejay.core.errors import CheckpointError
from bluejay.model.specs import ParamSpec
from bluejay.nn.quantized import BLOCK, GROUP, Int4, Int8, QuantizedWeight

PACKING_VERSION = 1
"""Of the order of bytes in `bluejay.nn.quantized`; a change there raises it."""
_INFINITE = np.uint16(0x7C00)  # a float16's exponent when it is infinite or no number
_CHECKED_AT_ONCE = 2**22


@dataclass(frozen=True, kw_only=True)
class Packing:
    """Bits of a code, and whether blocks have an offset beside their scale."""

    name: str
    bits: int
    has_offsets: bool = False

    @property
    def bits_per_weight(self) -> float:
        """Codes and the block's 16 bits of scale, and of offset."""
        return self.bits + (32 if self.has_offsets else 16) / BLOCK

    def shapes(self, spec: ParamSpec) -> dict[str, tuple[int, ...]]:
        """The shape of each part, by its name: `codes`, `scales` and perhaps `offsets`."""
        outputs, inputs = matrix_shape(spec)
        groups, blocks = -(-outputs // GROUP), inputs // BLOCK
        parts: dict[str, tuple[int, ...]]
        parts = {"codes": (groups, blocks, 64 * self.bits), "scales": (groups, blocks, GROUP)}
        return parts | ({"offsets": parts["scales"]} if self.has_offsets else {})

    def num_bytes(self, spec: ParamSpec) -> int:
        """Of all parts, the rows that fill up the last group included."""
        return sum(
            math.prod(shape) * PART_DTYPES[part].itemsize
            for part, shape in self.shapes(spec).items()
        )

    def leaf(self, parts: Mapping[str, NDArray[Any]], spec: ParamSpec) -> QuantizedWeight:
        """The leaf of a parameter tree that these parts make."""
        kind = Int8 if self.bits == 8 else Int4
        return kind(**parts, shape=spec.shape, num_inputs=spec.num_inputs)


PART_DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "codes": np.dtype(np.uint8),
        "scales": np.dtype(np.float16),
        "offsets": np.dtype(np.float16),
    }
)
INT8 = Packing(name="int8", bits=8)
INT4 = Packing(name="int4", bits=4)
INT4_OFFSET = Packing(name="int4_offset", bits=4, has_offsets=True)
PACKINGS: Mapping[str, Packing] = MappingProxyType(
    {packing.name: packing for packing in (INT8, INT4, INT4_OFFSET)}
)


def may_be_packed(name: str, spec: ParamSpec) -> bool:
    """Whether the tensor is a matrix that is multiplied with, in whole blocks of inputs.

    Norms, biases and learned positions are never packed: they are a thousandth of a model.
    """
    return spec.decay and name != "positions" and matrix_shape(spec)[1] % BLOCK == 0


def packing_of(leaf: QuantizedWeight) -> Packing:
    """How the leaf is packed."""
    if leaf.bits == 8:
        return INT8
    return INT4 if leaf.offsets is None else INT4_OFFSET


def parts_of(leaf: QuantizedWeight) -> dict[str, Any]:
    """The leaf's arrays by the names that files give them."""
    parts = {"codes": leaf.codes, "scales": leaf.scales, "offsets": leaf.offsets}
    return {name: part for name, part in parts.items() if part is not None}


def require_finite(parts: Mapping[str, NDArray[Any]], name: str, *, where: str) -> None:
    """Raise CheckpointError if a scale or an offset of the tensor is infinite or no number.

    All of them are read: a ninth of the bytes of a 4-bit model, 0.1 s for 6 B parameters. One
    that is not finite would make whole texts NaN.
    """
    for part in ("scales", "offsets"):
        count = num_not_finite(parts[part]) if part in parts else 0
        if count:
            raise CheckpointError(
                f"{where}: {count:,} of the {part} of {quoted(name)} are not finite numbers: the "
                "file is damaged; download it or quantize the model again."
            )


def num_not_finite(values: NDArray[np.float16]) -> int:
    """How many of the values are infinite or no number; as whole numbers, for np.isfinite
    converts each float16."""
    bits = np.ascontiguousarray(values).reshape(-1).view(np.uint16)
    pieces = (bits[i : i + _CHECKED_AT_ONCE] for i in range(0, bits.size, _CHECKED_AT_ONCE))
    return sum(int(np.count_nonzero(piece & _INFINITE == _INFINITE)) for piece in pieces)
