"""How GGUF stores elements: block sizes, and dequantization by the `gguf` package."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

_CHUNK_ELEMENTS = 2**20


@dataclass(frozen=True, kw_only=True)
class StoredType:
    """`block_elements` consecutive elements of a row take `block_bytes`.

    `dtype` is what the elements read as: their own where NumPy has it, otherwise float32.
    """

    number: int
    name: str
    block_elements: int
    block_bytes: int
    dtype: np.dtype[Any]

    @property
    def is_quantized(self) -> bool:
        return self.block_elements > 1


def _plain(number: int, name: str, dtype: type[Any]) -> StoredType:
    size = np.dtype(dtype).itemsize
    return StoredType(
        number=number, name=name, block_elements=1, block_bytes=size, dtype=np.dtype(dtype)
    )


def _blocks(number: int, name: str, block_elements: int, block_bytes: int) -> StoredType:
    return StoredType(
        number=number,
        name=name,
        block_elements=block_elements,
        block_bytes=block_bytes,
        dtype=np.dtype(np.float32),
    )


# enum ggml_type and the block structs of ggml-common.h; a test compares them with the package.
STORED_TYPES: Mapping[int, StoredType] = MappingProxyType(
    {
        stored.number: stored
        for stored in (
            _plain(0, "F32", np.float32),
            _plain(1, "F16", np.float16),
            _plain(30, "BF16", ml_dtypes.bfloat16),
            _plain(28, "F64", np.float64),
            _plain(24, "I8", np.int8),
            _plain(25, "I16", np.int16),
            _plain(26, "I32", np.int32),
            _plain(27, "I64", np.int64),
            _blocks(2, "Q4_0", 32, 18),
            _blocks(3, "Q4_1", 32, 20),
            _blocks(6, "Q5_0", 32, 22),
            _blocks(7, "Q5_1", 32, 24),
            _blocks(8, "Q8_0", 32, 34),
            _blocks(10, "Q2_K", 256, 84),
            _blocks(11, "Q3_K", 256, 110),
            _blocks(12, "Q4_K", 256, 144),
            _blocks(13, "Q5_K", 256, 176),
            _blocks(14, "Q6_K", 256, 210),
            _blocks(16, "IQ2_XXS", 256, 66),
            _blocks(17, "IQ2_XS", 256, 74),
            _blocks(18, "IQ3_XXS", 256, 98),
            _blocks(19, "IQ1_S", 256, 50),
            _blocks(20, "IQ4_NL", 32, 18),
            _blocks(21, "IQ3_S", 256, 110),
            _blocks(22, "IQ2_S", 256, 82),
            _blocks(23, "IQ4_XS", 256, 136),
            _blocks(29, "IQ1_M", 256, 56),
            _blocks(34, "TQ1_0", 256, 54),
            _blocks(35, "TQ2_0", 256, 66),
            _blocks(39, "MXFP4", 32, 17),
        )
    }
)


def dequantize(
    rows: NDArray[np.uint8], stored: StoredType, *, shape: tuple[int, ...]
) -> NDArray[np.float32]:
    """Rows of blocks as float32 of `shape`, a chunk at a time, so that one copy exists."""
    # Loaded here because it takes 0.2 s and only quantized files need it.
    quants = importlib.import_module("gguf.quants")
    kind = quants.GGMLQuantizationType(stored.number)
    row_elements = rows.shape[1] // stored.block_bytes * stored.block_elements
    step = max(1, _CHUNK_ELEMENTS // row_elements)
    whole = np.empty((rows.shape[0], row_elements), np.float32)
    for start in range(0, rows.shape[0], step):
        chunk = slice(start, start + step)
        whole[chunk] = quants.dequantize(rows[chunk], kind)
    return whole.reshape(shape)
