"""Weights of 8 or 4 bits in blocks of 32 inputs, as leaves of a parameter tree.

A weight is scale * (code - zero) + offset. `Int8` has zero 128 and no offset: GGUF's Q8_0. `Int4`
has zero 8 and no offset (Q4_0), or zero 0 and an offset (Q4_1). Scales and offsets are float16,
one of each per output row and block, so that all three are held exactly.

The bytes lie as the kernels read them (native/quantized.h): outputs in groups of 16, padded with
zeros; in a block, byte 4 r + j of each 64 belongs to row r of the group. Axes: N outputs
I inputs  Q groups  L blocks  X 64 * bits
"""

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass
from numpy.typing import NDArray

BLOCK = 32
GROUP = 16


@dataclass(frozen=True, kw_only=True)
class QuantizedWeight:
    """What both widths share. `shape` is that of the weight: output axes, then `num_inputs` ones
    whose sizes multiply to I."""

    codes: Any  # uint8 Q L X
    scales: Any  # float16 Q L 16
    offsets: Any = None  # float16 Q L 16, or None
    shape: tuple[int, ...] = field(default=(), metadata={"static": True})
    num_inputs: int = field(default=1, metadata={"static": True})

    bits: ClassVar[int]

    @property
    def ndim(self) -> int:
        """As of an array of this shape."""
        return len(self.shape)

    @property
    def num_outputs(self) -> int:
        """N, the product of the output axes."""
        return math.prod(self.shape[: len(self.shape) - self.num_inputs])

    @property
    def zero(self) -> int:
        """The code of a weight that equals the offset."""
        return 0 if self.offsets is not None else 1 << (self.bits - 1)


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class Int8(QuantizedWeight):
    """Bytes: 8.5 bits per weight."""

    bits: ClassVar[int] = 8


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class Int4(QuantizedWeight):
    """Nibbles: 4.5 bits per weight, 5 with offsets."""

    bits: ClassVar[int] = 4


def pack_codes(codes: NDArray[np.uint8], *, bits: int) -> NDArray[np.uint8]:
    """[N, I] codes, one a byte, as Q L X; rows that fill up the last group are zeros."""
    outputs, inputs = codes.shape
    assert inputs % BLOCK == 0, "inputs come in whole blocks"
    groups = -(-outputs // GROUP)
    padded = np.zeros((groups * GROUP, inputs), np.uint8)
    padded[:outputs] = codes
    # Q row L slice 4 -> Q L slice row 4
    split = padded.reshape(groups, GROUP, inputs // BLOCK, BLOCK // 4, 4).transpose(0, 2, 3, 1, 4)
    if bits == 4:
        split = split[:, :, :4] | (split[:, :, 4:] << np.uint8(4))
    return np.ascontiguousarray(split).reshape(groups, inputs // BLOCK, 64 * bits)


def unpack_codes(packed: Any, *, bits: int, outputs: int) -> Any:
    """The inverse of `pack_codes`, for NumPy and JAX arrays."""
    groups, blocks, _ = packed.shape
    split = packed.reshape(groups, blocks, bits, GROUP, 4)
    if bits == 4:
        join = jnp.concatenate if isinstance(packed, jax.Array) else np.concatenate
        split = join([split & 15, split >> 4], axis=2)
    codes = split.transpose(0, 3, 1, 2, 4).reshape(groups * GROUP, blocks * BLOCK)
    return codes[:outputs]


def pack_scales(scales: NDArray[np.float16]) -> NDArray[np.float16]:
    """[N, L] values per row and block as Q L 16, padded with zeros."""
    outputs, blocks = scales.shape
    groups = -(-outputs // GROUP)
    padded = np.zeros((groups * GROUP, blocks), np.float16)
    padded[:outputs] = scales
    return np.ascontiguousarray(padded.reshape(groups, GROUP, blocks).transpose(0, 2, 1))


def unpack_scales(packed: Any, *, outputs: int) -> Any:
    """The inverse of `pack_scales`."""
    groups, blocks, _ = packed.shape
    return packed.transpose(0, 2, 1).reshape(groups * GROUP, blocks)[:outputs]


def dequantize(weight: QuantizedWeight) -> Any:
    """The weights as float32, in their own shape; leaves may be NumPy's or JAX's arrays."""
    outputs = weight.num_outputs
    codes = unpack_codes(weight.codes, bits=weight.bits, outputs=outputs)
    wide = codes.astype(np.float32).reshape(outputs, -1, BLOCK) - np.float32(weight.zero)
    values = wide * unpack_scales(weight.scales, outputs=outputs).astype(np.float32)[:, :, None]
    if weight.offsets is not None:
        offsets = unpack_scales(weight.offsets, outputs=outputs)
        values = values + offsets.astype(np.float32)[:, :, None]
    return values.reshape(weight.shape)


def take_rows(weight: Any, ids: Any) -> Any:
    """Rows of a matrix by number, dequantized if need be; numbers beyond its end take the last.

    Reads only the rows that are asked for: of each the group's lane, 4 bytes out of 64.
    """
    if not isinstance(weight, QuantizedWeight):
        return jnp.take(weight, ids, axis=0, mode="clip")
    assert weight.num_inputs == 1
    assert weight.ndim == 2
    ids = jnp.clip(ids, 0, weight.shape[0] - 1)
    group, lane = ids // GROUP, ids % GROUP
    groups, blocks, _ = weight.codes.shape
    split = weight.codes.reshape(groups, blocks, weight.bits, GROUP, 4)[group, :, :, lane]
    if weight.bits == 4:
        split = jnp.concatenate([split & 15, split >> 4], axis=-2)
    codes = split.reshape(*ids.shape, blocks, BLOCK).astype(jnp.float32)
    values = (codes - jnp.float32(weight.zero)) * _lanes(weight.scales, group, lane)
    if weight.offsets is not None:
        values = values + _lanes(weight.offsets, group, lane)
    return values.reshape(*ids.shape, blocks * BLOCK)


def _lanes(packed: Any, group: Any, lane: Any) -> Any:
    """One value per row and block, as float32 with an axis for the block's inputs."""
    return packed[group, :, lane].astype(jnp.float32)[..., None]
