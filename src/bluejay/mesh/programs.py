"""What programs keep to whose arrays lie over a mesh: where their results lie, and one order."""

import math
import threading
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

# Two threads that start programs may reach the devices in different orders. Each device would then
# wait in another program for the others: nothing ever ends.
_order = threading.Lock()


def mesh_of(tree: Any) -> Mesh | None:
    """The mesh of several devices over which arrays lie, or None."""
    for leaf in jax.tree.leaves(tree):
        if isinstance(leaf, jax.Array) and isinstance(leaf.sharding, NamedSharding):
            mesh = leaf.sharding.mesh
            if isinstance(mesh, Mesh) and mesh.size > 1:
                return mesh
    return None


def bytes_per_device(tree: Any) -> int:
    """What arrays take on each of their devices."""
    shards = ((x.sharding.shard_shape(x.shape), x.dtype.itemsize) for x in jax.tree.leaves(tree))
    return sum(math.prod(shape) * width for shape, width in shards)


def whole_on(mesh: Mesh) -> NamedSharding:
    """All of an array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def heads_over(mesh: Mesh) -> NamedSharding:
    """Arrays whose second axis is that of the key/value heads, as those of a cache."""
    return NamedSharding(mesh, PartitionSpec(None, "model"))


def last_over(mesh: Mesh, num_axes: int) -> NamedSharding:
    """Arrays whose last axis is split."""
    return NamedSharding(mesh, PartitionSpec(*[None] * (num_axes - 1), "model"))


def in_order(mesh: Mesh | None) -> AbstractContextManager[Any]:
    """To start a program in, whichever thread does; it need not end there."""
    return nullcontext() if mesh is None else _order
