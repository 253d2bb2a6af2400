"""Write a native folder's weights tensor by tensor, some of them packed, in any order."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.native import native_writer
from bluejay.checkpoints.packing import Packing, parts_of
from bluejay.model.config import DecoderConfig
from bluejay.nn.quantized import QuantizedWeight

OnWritten = Callable[[int, int], None]
"""Called after each tensor with the bytes written so far and in all."""


class PackedWriter:
    """Writes the weights file; a context manager, as the writer below it.

    The file has its own order: tensors whose size is no multiple of 64 come last. Those are few
    and small, and wait here for their turn; the others are written as they come, if they come in
    the order of the parameter tree.
    """

    def __init__(
        self,
        folder: Path,
        config: DecoderConfig,
        dtypes: Mapping[str, np.dtype[Any]],
        packing: Mapping[str, Packing],
        on_written: OnWritten | None = None,
    ) -> None:
        self._writer = native_writer(folder, config, dtypes, packing)
        self._due = list(reversed(self._writer.order))
        self._waiting: dict[str, NDArray[Any]] = {}
        self._on_written, self._done = on_written, 0

    def __enter__(self) -> "PackedWriter":
        self._writer.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.__exit__(kind, error, trace)

    @property
    def sums(self) -> dict[str, str]:
        """The sha256 of each finished file, by its name."""
        return {file.path.name: file.sha256 for file in self._writer.written}

    def write(self, name: str, values: NDArray[Any] | QuantizedWeight) -> None:
        """Add one tensor, or all parts of a packed one (of NumPy arrays)."""
        if isinstance(values, QuantizedWeight):
            self._waiting |= {f"{name}.{part}": v for part, v in parts_of(values).items()}
        else:
            self._waiting[name] = values
        while self._due and self._due[-1] in self._waiting:
            due = self._due.pop()
            array = self._waiting.pop(due)
            self._writer.write(due, array)
            self._done += array.nbytes
        if self._on_written is not None:
            self._on_written(self._done, self._writer.num_bytes)
