"""Where arrays lie: a mesh of two axes, and rules from logical axes to them.

The mesh always has both axes, `data` and `model`, of size 1 where there is nothing to split.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bluejay.core.errors import UsageError

MESH_AXES = ("data", "model")


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The mesh axis that splits each logical axis; absent ones are whole on every device."""

    axes: Mapping[str, str]


REPLICATED = Rules(axes={})
# Megatron-style: heads, feed-forward and vocabulary over `model`, one sum per part of a block.
TENSOR_PARALLEL = Rules(
    axes={"heads": "model", "kv_heads": "model", "feed_forward": "model", "vocab": "model"}
)
# Every weight's embedding axis over `data`; gathered where it is used (ZeRO stage 3).
FULLY_SHARDED = Rules(axes={"embed": "data"})


def make_mesh(*, data: int, model: int) -> Mesh:
    """A mesh over the first data * model devices. UsageError if there are fewer."""
    devices = jax.devices()
    if data < 1 or model < 1 or data * model > len(devices):
        raise UsageError(
            f"A mesh of {data} x {model} needs {data * model} devices, but there are "
            f"{len(devices)}: choose smaller sizes."
        )
    types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh(
        (data, model), MESH_AXES, axis_types=types, devices=devices[: data * model]
    )


def sharding_of(
    shape: tuple[int, ...], axes: tuple[str, ...], *, mesh: Mesh, rules: Rules
) -> NamedSharding:
    """The sharding of one array whose axes have these logical names.

    UsageError if a split axis does not divide by its mesh axis, or if two logical axes of the
    array claim the same one.
    """
    chosen = [rules.axes.get(axis) for axis in axes]
    used = [axis for axis in chosen if axis is not None]
    if len(set(used)) != len(used):
        raise UsageError(f"The axes {axes} claim a mesh axis twice: {chosen}; change the rules.")
    for size, name, axis in zip(shape, axes, chosen, strict=True):
        if axis is not None and size % mesh.shape[axis]:
            raise UsageError(
                f"The axis {name} of {size} does not divide over {mesh.shape[axis]} devices: "
                f"choose a mesh whose {axis!r} size divides it."
            )
    return NamedSharding(mesh, PartitionSpec(*chosen))
