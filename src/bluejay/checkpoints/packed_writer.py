"""Write a native folder's weights tensor by tensor, some of them packed, in any order."""

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from bluejay.checkpoints.packing import parts_of
from bluejay.checkpoints.safetensors_writer import SafetensorsWriter
from bluejay.nn.quantized import QuantizedWeight

OnWritten = Callable[[int, int], None]
"""Called after each tensor with the bytes written so far and in all."""


class PackedWriter:
    """Fills a folder's open writer (`native_writer`).

    The file has its own order: tensors whose size is no multiple of 64 come last. Those are few
    and small, and wait here for their turn; the others are written as they come, if they come in
    the order of the parameter tree.
    """

    def __init__(self, writer: SafetensorsWriter, on_written: OnWritten | None = None) -> None:
        self._writer = writer
        self._due = list(reversed(writer.order))
        self._waiting: dict[str, NDArray[Any]] = {}
        self._on_written, self._done = on_written, 0

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
