"""GGUF's blocks of 32 as packed leaves: codes and scales as stored, only their order changes.

Q8_0 is a scale and 32 signed bytes; Q4_0 a scale and 16 bytes, whose low nibbles are elements 0
to 15 and whose high ones 16 to 31; Q4_1 has an offset behind the scale (ggml-common.h). The packed
order has the same nibbles, so four bytes move as one.

Axes: N outputs  L blocks of 32 inputs  Q groups of 16 outputs
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.packing import INT4, INT4_OFFSET, INT8, Packing
from bluejay.nn.quantized import GROUP

# By the name of GGML's type.
PACKABLE: Mapping[str, Packing] = MappingProxyType(
    {"Q8_0": INT8, "Q4_0": INT4, "Q4_1": INT4_OFFSET}
)
_HALF = 2
_ALIGNMENT = 64


def pack_blocks(rows: NDArray[np.uint8], packing: Packing) -> dict[str, NDArray[Any]]:
    """Rows of blocks, N by bytes of a row, as the parts of a leaf: Q L X and Q L 16.

    The parts start at multiples of 64 bytes, so that a device takes them without a copy.
    """
    head = 2 * _HALF if packing.has_offsets else _HALF
    block_bytes = head + 4 * packing.bits
    blocks = rows.reshape(len(rows), -1, block_bytes)
    codes = np.ascontiguousarray(blocks[:, :, head:])
    if packing.bits == 8:
        codes ^= np.uint8(128)  # adds 128: a signed byte's codes are counted from its least value
    packed = _interleaved(codes.view(np.uint32)).view(np.uint8)
    parts = {"codes": packed.reshape(*packed.shape[:2], -1)}
    for place, name in enumerate(("scales", "offsets")[: head // _HALF]):
        halves = np.ascontiguousarray(blocks[:, :, place * _HALF : (place + 1) * _HALF])
        parts[name] = _interleaved(halves.view(np.uint16))[:, :, 0].view(np.float16)
    return parts


def _interleaved(units: NDArray[Any]) -> NDArray[Any]:
    """[N, L, S] as Q L S 16; rows that fill up the last group are zeros."""
    outputs, blocks, size = units.shape
    groups, whole = -(-outputs // GROUP), outputs // GROUP
    packed = _aligned_zeros((groups, blocks, size, GROUP), units.dtype)
    full = units[: whole * GROUP].reshape(whole, GROUP, blocks, size)
    packed[:whole] = full.transpose(0, 2, 3, 1)
    rest = units[whole * GROUP :]
    packed[whole:, :, :, : len(rest)] = rest.transpose(1, 2, 0)
    return packed


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    num_bytes = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    room = np.zeros(num_bytes + _ALIGNMENT, np.uint8)
    start = -room.ctypes.data % _ALIGNMENT
    return room[start : start + num_bytes].view(dtype).reshape(shape)
