"""Losses over a vocabulary, in float32.

Axes: ... any leading axes  V vocabulary
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bluejay.kernels.products import native_precision
from bluejay.kernels.training import cross_entropy as native_cross_entropy


def cross_entropy(
    logits: Float[Array, "... V"],
    targets: Int[Array, "..."],
    bias: Float[Array, "V"] | None = None,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """(-log softmax(logits)[target], log sum exp(logits - max)) of each position, in nats;
    the bias, where there is one, is added to the logits first.

    The second is what the z-loss of mesh-transformer-jax squares (layers.py): the usual log Z
    less the largest logit.
    """
    if native_precision() is not None and logits.dtype == jnp.float32:
        return _native(logits, targets, bias)
    wide = logits.astype(jnp.float32)
    if bias is not None:
        wide = wide + bias.astype(jnp.float32).reshape((1,) * (wide.ndim - 1) + bias.shape)
    highest = jax.lax.stop_gradient(jnp.max(wide, axis=-1, keepdims=True))
    shifted = wide - highest
    log_sum = jnp.log(jnp.sum(jnp.exp(shifted), axis=-1))
    # A comparison fuses into the passes around it; a gather's gradient is a serial scatter on CPU.
    ids = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    chosen = jnp.sum(jnp.where(ids == targets[..., None], shifted, 0.0), axis=-1)
    return log_sum - chosen, log_sum


def _native(
    logits: Float[Array, "... V"], targets: Int[Array, "..."], bias: Float[Array, "V"] | None
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    vocabulary = logits.shape[-1]
    if bias is None:
        bias = jnp.zeros((vocabulary,), jnp.float32)
    rows, ids = logits.reshape(-1, vocabulary), targets.reshape(-1).astype(jnp.int32)
    loss, log_sum = native_cross_entropy(rows, bias.astype(jnp.float32), ids)
    return loss.reshape(targets.shape), log_sum.reshape(targets.shape)
