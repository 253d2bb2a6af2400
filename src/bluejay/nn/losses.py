"""Losses over a vocabulary, in float32.

Axes: ... any leading axes  V vocabulary
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(
    logits: Float[Array, "... V"], targets: Int[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """(-log softmax(logits)[target], log sum exp(logits - max)) of each position, in nats.

    The second is what the z-loss of mesh-transformer-jax squares (layers.py): the usual log Z
    less the largest logit.
    """
    wide = logits.astype(jnp.float32)
    highest = jax.lax.stop_gradient(jnp.max(wide, axis=-1, keepdims=True))
    shifted = wide - highest
    log_sum = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))
    # A comparison fuses into the passes around it; a gather's gradient is a serial scatter on CPU.
    ids = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    chosen = jnp.sum(jnp.where(ids == targets[..., None], shifted, 0.0), axis=-1)
    return log_sum - chosen, log_sum
