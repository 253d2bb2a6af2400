"""Small arrays from the host, without a program for each of their shapes.

Axes: T tokens of one chunk
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Int
from numpy.typing import NDArray


def on_device(values: Sequence[Any] | NDArray[Any] | int, dtype: type[np.generic]) -> Array:
    """A copy of `values` on the default device.

    `jnp.asarray` traces and compiles a conversion of each shape, 5 to 10 ms at a start.
    """
    placed: Array = jax.device_put(np.array(values, dtype))
    return placed


def padded(piece: Sequence[int], size: int) -> Int[Array, "1 T"]:
    """The ids of a chunk of a prompt, zeros behind them."""
    return on_device([[*piece, *[0] * (size - len(piece))]], np.int32)
