"""What every readable weights file looks like from above: named tensors, read one at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """One tensor as the file announces it, before a byte of it is read.

    `dtype` is the dtype that `read` returns (bfloat16 comes from ml_dtypes; block-quantized
    storage reads as float32); `stored` is the file's own name for it, such as "BF16" or "Q4_1".
    `packing` names how `read_packed` gives the tensor (see `bluejay.checkpoints.packing`), whose
    bytes `num_bytes` then counts; None where it can only be read as an array.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    stored: str
    num_bytes: int
    packing: str | None = None


class TensorSource(Protocol):
    """A weights file or folder, opened and checked against its own size.

    `read` returns the whole tensor in C order: a read-only view of the mapped file where the
    storage allows it, otherwise a fresh array that the caller owns. Nothing is kept after it.
    """

    @property
    def tensors(self) -> Mapping[str, TensorInfo]: ...

    def read(self, name: str) -> NDArray[Any]: ...

    def close(self) -> None: ...
