"""The loss of next-token training.

Axes: B rows  W window  T predicted positions, W - 1
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bluejay.model.config import DecoderConfig
from bluejay.model.decoder import residual, unbiased_logits
from bluejay.model.params import DecoderParams
from bluejay.nn.losses import cross_entropy

Metrics = dict[str, Array]


def next_token_loss(
    params: DecoderParams,
    ids: Int[Array, "B W"],
    weights: Float[Array, "B T"] | None,
    *,
    config: DecoderConfig,
    z_loss: float = 0.0,
) -> tuple[Float[Array, ""], Metrics]:
    """Mean cross-entropy of every token given those before it, in nats, weighted per token.

    `z_loss` times the mean square of log sum exp(logits - max) is added, as the 2021 recipe does
    in training with 1e-4 (mesh-transformer-jax layers.py); the metric `loss` leaves it out.
    """
    x = residual(params, ids[:, :-1], config=config)
    scores = unbiased_logits(params, x, config=config)
    losses, log_sums = cross_entropy(scores, ids[:, 1:], params.head_bias)
    if weights is None:
        loss, extra = jnp.mean(losses), jnp.mean(jnp.square(log_sums))
    else:
        total = jnp.maximum(jnp.sum(weights), 1e-8)
        loss = jnp.sum(losses * weights) / total
        extra = jnp.sum(jnp.square(log_sums) * weights) / total
    return loss + z_loss * extra, {"loss": loss}
