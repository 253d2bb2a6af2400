"""Small arrays from the host, without a program for each of their shapes.

Axes: T tokens of one chunk
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int
from numpy.typing import NDArray

from bluejay.mesh.programs import whole_on


def on_device(
    values: Sequence[Any] | NDArray[Any] | int, dtype: type[np.generic], mesh: Mesh | None = None
) -> Array:
    """A copy of `values` on the default device, or one on each device of a mesh.

    `jnp.asarray` traces and compiles a conversion of each shape, 5 to 10 ms at a start.
    """
    place = None if mesh is None else whole_on(mesh)
    placed: Array = jax.device_put(np.array(values, dtype), place)
    return placed


def padded(piece: Sequence[int], size: int) -> Int[Array, "1 T"]:
    """The ids of a chunk of a prompt, zeros behind them."""
    return on_device([[*piece, *[0] * (size - len(piece))]], np.int32)


def is_there(tree: object) -> bool:
    """Whether the arrays have not been given to a program that failed, nor come from one."""
    if any(array.is_deleted() for array in jax.tree.leaves(tree)):
        return False
    try:
        jax.block_until_ready(tree)
    except jax.errors.JaxRuntimeError:
        return False
    return True
