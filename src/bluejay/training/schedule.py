"""Learning rates over steps."""

from dataclasses import dataclass
from typing import Literal, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bluejay.core.errors import UsageError

Shape = Literal["cosine", "stable"]


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """A factor between 0 and 1 on the learning rates; lengths in steps.

    `cosine` is the 2021 recipe's (mesh-transformer-jax util.py): linear from 0 over
    `warmup_steps`, a half cosine to `final_factor` over the next `decay_steps`, then flat.
    `stable` stays at 1 after the warm-up and falls linearly to `final_factor` over the last
    `decay_steps` of `total_steps` (Hu et al. 2024, arXiv:2404.06395).
    """

    shape: Shape
    warmup_steps: int
    decay_steps: int
    total_steps: int
    final_factor: float = 0.0

    def __post_init__(self) -> None:
        if self.shape not in get_args(Shape):
            raise UsageError(f"The schedule is one of {get_args(Shape)}, not {self.shape!r}.")
        if min(self.warmup_steps, self.decay_steps) < 0 or self.total_steps < 1:
            raise UsageError(
                f"A schedule of {self.warmup_steps} + {self.decay_steps} steps in "
                f"{self.total_steps} cannot be: give numbers of steps of 0 or more."
            )
        if self.shape == "stable" and self.warmup_steps + self.decay_steps > self.total_steps:
            raise UsageError(
                f"Warm-up ({self.warmup_steps}) and decay ({self.decay_steps}) take more than the "
                f"{self.total_steps} steps there are: shorten them."
            )
        if not 0.0 <= self.final_factor <= 1.0:
            raise UsageError(f"final_factor must lie between 0 and 1, not {self.final_factor}.")


def factor(config: ScheduleConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    """The factor on the learning rates at a step, counted from 0."""
    now = step.astype(jnp.float32)
    warm = jnp.minimum(now / max(config.warmup_steps, 1), 1.0)
    if config.shape == "cosine":
        progress = (now - config.warmup_steps) / max(config.decay_steps, 1)
        falling = 0.5 + 0.5 * jnp.cos(jnp.pi * jnp.clip(progress, 0.0, 1.0))
    else:
        falling = jnp.clip((config.total_steps - now) / max(config.decay_steps, 1), 0.0, 1.0)
    decayed = config.final_factor + (1.0 - config.final_factor) * falling
    return jnp.where(now < config.warmup_steps, warm, decayed).astype(jnp.float32)
