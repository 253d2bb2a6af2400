"""A stored decoder's tensors by native name: arrays, and packed leaves where they are stored so."""

from typing import Protocol

from bluejay.checkpoints.tensor_source import TensorSource
from bluejay.nn.quantized import QuantizedWeight


class ModelTensors(TensorSource, Protocol):
    """A TensorSource of native names and shapes.

    `read` gives every tensor as an array, packed ones dequantized. `read_packed` gives those whose
    TensorInfo names a packing as leaves of NumPy arrays, of a file in the native format as views
    of the map; CheckpointError if a scale or an offset is not finite.
    """

    def read_packed(self, name: str) -> QuantizedWeight: ...
