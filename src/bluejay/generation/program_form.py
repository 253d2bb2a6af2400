"""What every program over a decoder is compiled for.

Axes: R rows  V vocabulary
"""

from dataclasses import dataclass
from typing import TypeVar

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bluejay.mesh.programs import heads_over, whole_on
from bluejay.model.cache import Cache, empty_cache
from bluejay.model.config import DecoderConfig

Kept = TypeVar("Kept")


@dataclass(frozen=True, kw_only=True)
class ProgramForm:
    """A decoder, and where it runs: by native kernels, by XLA, or by XLA over a `mesh`."""

    config: DecoderConfig
    is_native: bool
    mesh: Mesh | None = None

    def empty_cache(self, batch: int, capacity: int, dtype: DTypeLike) -> Cache:
        """As `bluejay.model.cache.empty_cache`, where programs find it."""
        place = None if self.mesh is None else heads_over(self.mesh)
        return empty_cache(self.config, batch=batch, capacity=capacity, dtype=dtype, sharding=place)

    def whole(self, values: Float[Array, "..."]) -> Float[Array, "..."]:
        """The same on every device: what follows is the same work everywhere, and no traffic.

        For logits, from which ids are chosen, and states that leave the decoder.
        """
        if self.mesh is None:
            return values
        same: Array = jax.lax.with_sharding_constraint(values, whole_on(self.mesh))
        return same

    def kept(self, cache: Kept) -> Kept:
        """A cache whose heads stay on their devices, so that the next call finds them there."""
        if self.mesh is None:
            return cache
        same: Kept = jax.lax.with_sharding_constraint(cache, heads_over(self.mesh))
        return same
