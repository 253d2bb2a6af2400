"""Memory that is free where arrays will lie."""

import jax
from jax.sharding import Mesh

from bluejay.core.memory import available_bytes


def free_bytes(mesh: Mesh | None = None) -> int:
    """Of the default device, or what each device of a mesh has at least."""
    devices = jax.devices()[:1] if mesh is None else list(mesh.devices.flat)
    stats = [device.memory_stats() for device in devices if device.platform != "cpu"]
    if all(stats) and stats:
        return min(int(found["bytes_limit"] - found["bytes_in_use"]) for found in stats if found)
    return available_bytes() // len(devices)  # devices of one processor share its memory
