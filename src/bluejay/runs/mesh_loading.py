"""Parameters over a mesh: each device has its share of every matrix."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from numpy.typing import NDArray

from bluejay.core.errors import UsageError
from bluejay.mesh.placement import TENSOR_PARALLEL, make_mesh, sharding_of
from bluejay.model.config import DecoderConfig
from bluejay.model.params import named_leaves
from bluejay.model.partition import Partition, partition
from bluejay.model.specs import ParamSpec, decoder_specs


def serving_mesh(sizes: Mapping[str, int] | None) -> Mesh | None:
    """The mesh for `{"model": N}`, or None for one device.

    Raises UsageError for other axes and for more devices than there are.
    """
    if sizes is None:
        return None
    for axis, size in sizes.items():
        if axis == "data":
            raise UsageError(
                f"data={size} would hold the model {size} times: start so many servers for that"
                " (docs/guides/replicas.md), or share it between devices with model=N."
            )
        if axis != "model":
            raise UsageError(f"A mesh has no axis {axis!r}: model={size} shares the model.")
        _require_devices(size)
    size = sizes.get("model", 1)
    return None if size == 1 else make_mesh(data=1, model=size)


def _require_devices(size: int) -> None:
    there = len(jax.devices())
    if size < 1:
        raise UsageError(f"A mesh has at least 1 device, not model={size}.")
    if size > there:
        what = "only 1 device is" if there == 1 else f"only {there} devices are"
        at_most = "leave --mesh out" if there == 1 else f"give at most model={there}"
        raise UsageError(f"--mesh model={size} needs {size} devices, and {what} here: {at_most}.")


@dataclass(frozen=True, kw_only=True)
class MeshPlacement:
    """Where each parameter of a decoder goes."""

    mesh: Mesh
    partition: Partition
    specs: Mapping[str, ParamSpec]
    targets: Mapping[str, ParamSpec]

    @classmethod
    def of(cls, config: DecoderConfig, mesh: Mesh) -> "MeshPlacement":
        """UsageError for a decoder that so many devices cannot share."""
        found = partition(config, mesh.size)
        return cls(
            mesh=mesh,
            partition=found,
            specs=named_leaves(decoder_specs(config)),
            targets=named_leaves(found.specs),
        )

    def put(self, path: str, values: NDArray[Any], dtype: np.dtype[Any]) -> jax.Array:
        """A stored parameter on the devices."""
        fitted = self.partition.fitted(values, self.specs[path], self.targets[path])
        placed: jax.Array = jax.device_put(fitted.astype(dtype, copy=False), self.sharding(path))
        return placed

    def sharding(self, path: str) -> NamedSharding:
        """Of a parameter."""
        target = self.targets[path]
        return sharding_of(target.shape, target.axes, mesh=self.mesh, rules=TENSOR_PARALLEL)

    def bytes_per_device(self, dtype: np.dtype[Any]) -> int:
        """Of all parameters."""
        shapes = (
            self.sharding(path).shard_shape(target.shape) for path, target in self.targets.items()
        )
        return sum(int(np.prod(shape)) for shape in shapes) * dtype.itemsize
