"""What every program over a decoder is compiled for.

Axes: B batch  T position  D embed  V vocabulary
"""

from dataclasses import dataclass
from typing import TypeVar

import jax
from jax.sharding import Mesh
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from bluejay.mesh.programs import heads_over, last_over, whole_on
from bluejay.model.cache import Cache, empty_cache
from bluejay.model.config import DecoderConfig
from bluejay.model.decoder import logits
from bluejay.model.params import DecoderParams

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

    def logits(self, params: DecoderParams, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """As `bluejay.model.decoder.logits`, and the same on every device: ids are chosen by the
        same work everywhere, and no traffic."""
        scores: Array = logits(params, x, config=self.config)
        if self.mesh is None:
            return scores
        # Or the compiler may send the head to every device in place of its logits.
        split = jax.lax.with_sharding_constraint(scores, last_over(self.mesh, scores.ndim))
        return self.whole(split)[..., : self.config.vocab_size]

    def whole(self, values: Float[Array, "..."]) -> Float[Array, "..."]:
        """The same on every device."""
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
