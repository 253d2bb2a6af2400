"""What stands between the logits and the choice: one function per transform.

Each takes scores and gives scores, float32 [B, V], with the transform's parameter per row [B], so
that rows of different requests share one program. A removed id scores -inf and stays removed: no
transform revives it. Every parameter has a neutral value that leaves the scores as they are.
Filters keep at least one id of each row that has one.

Order and formulas are Hugging Face's, except for ties, which top-k and top-p break by the lower id,
and the presence and frequency penalties, which only OpenAI's API has.

Axes: B batch  V vocabulary
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32

from bluejay.generation.weights import descending_order, keep_leading, rank_threshold, weigh

Scores = Float32[Array, "B V"]


def remove_disallowed(scores: Scores, allowed: Bool[Array, "B V"]) -> Scores:
    """Removes the ids that must not be chosen. It comes first."""
    return jnp.where(allowed, scores, -jnp.inf)


def add_logit_bias(scores: Scores, bias: Scores) -> Scores:
    """Adds a finite bias to each score; 0 is neutral."""
    return scores + bias


def penalize_repetition(
    scores: Scores, seen: Bool[Array, "B V"], penalty: Float32[Array, "B"]
) -> Scores:
    """Divides a seen id's positive score by the penalty, multiplies a negative one; 1 is neutral.

    Once per id, however often it was seen (HF; after Keskar et al. 2019).
    """
    factor = jnp.where(seen, penalty[:, None], 1)
    return jnp.where(scores < 0, scores * factor, scores / factor)


def penalize_presence(
    scores: Scores, counts: Int32[Array, "B V"], penalty: Float32[Array, "B"]
) -> Scores:
    """Subtracts the penalty from ids that were generated at all; 0 is neutral."""
    return scores - jnp.where(counts > 0, penalty[:, None], 0)


def penalize_frequency(
    scores: Scores, counts: Int32[Array, "B V"], penalty: Float32[Array, "B"]
) -> Scores:
    """Subtracts the penalty as often as the id was generated; 0 is neutral."""
    return scores - counts.astype(jnp.float32) * penalty[:, None]


def scale_temperature(scores: Scores, temperature: Float32[Array, "B"]) -> Scores:
    """Divides by the temperature; 1 is neutral, and 0 (a greedy row) leaves scores alone."""
    divisor = jnp.broadcast_to(jnp.where(temperature == 0, 1, temperature)[:, None], scores.shape)
    # XLA multiplies by the reciprocal of what it sees broadcast, which rounds twice.
    hidden: jax.Array = lax.optimization_barrier(divisor)
    return scores / hidden


def keep_top_k(scores: Scores, k: Int32[Array, "B"]) -> Scores:
    """Keeps exactly the k largest scores, or all when there are fewer; 0 is neutral."""
    count = jnp.clip(k, 1, scores.shape[-1])
    threshold = rank_threshold(scores, jnp.ones_like(scores, dtype=jnp.int32), count)
    kept = keep_leading(descending_order(scores), threshold, count)
    return _keep(scores, kept | (k == 0)[:, None])


def keep_top_p(scores: Scores, p: Float32[Array, "B"]) -> Scores:
    """Keeps the fewest ids, largest first, whose probability reaches p; 1 is neutral."""
    weights = weigh(scores)
    needed = _share(weights.total, p)
    order = descending_order(scores)
    threshold = rank_threshold(scores, weights.of_ids, needed)
    before = order < threshold[:, None]
    tied = order == threshold[:, None]
    missing = needed - jnp.sum(jnp.where(before, weights.of_ids, 0), axis=-1)
    # Equal scores weigh the same, so this many of those at the threshold reach p.
    tied_weight = jnp.max(jnp.where(tied, weights.of_ids, 1), axis=-1)
    count = jnp.sum(before, axis=-1, dtype=jnp.int32) - (-missing // tied_weight)
    kept = keep_leading(order, threshold, count)
    return _keep(scores, kept | (p >= 1)[:, None])


def keep_min_p(scores: Scores, p: Float32[Array, "B"]) -> Scores:
    """Keeps ids at least p times as probable as the most probable one; 0 is neutral."""
    largest = jnp.max(scores, axis=-1, keepdims=True)
    return _keep(scores, scores - largest >= jnp.log(p)[:, None])


def keep_typical(scores: Scores, p: Float32[Array, "B"]) -> Scores:
    """Keeps the ids nearest in surprise to the entropy until their probability reaches p.

    Equally near ids stay or go together; 1 is neutral (Meister et al. 2022).
    """
    weights = weigh(scores)
    log_probabilities = scores - weights.largest[:, None] - weights.log_sum[:, None]
    shares = weights.of_ids.astype(jnp.float32) / weights.total.astype(jnp.float32)[:, None]
    # An id of weight 0 adds nothing, and -inf times 0 would be no number.
    surprise = jnp.where(weights.of_ids > 0, -log_probabilities * shares, 0)
    # Summed as whole numbers, like the weights; an entropy is at most log(V), under 20.
    units = jnp.sum(jnp.round(surprise * 2.0**26).astype(jnp.int32), axis=-1, keepdims=True)
    entropy = units.astype(jnp.float32) * 2.0**-26
    nearness = -jnp.abs(log_probabilities + entropy)
    threshold = rank_threshold(nearness, weights.of_ids, _share(weights.total, p))
    kept = descending_order(nearness) <= threshold[:, None]
    return _keep(scores, kept | (p >= 1)[:, None])


def _share(total: Int32[Array, "B"], p: Float32[Array, "B"]) -> Int32[Array, "B"]:
    needed = jnp.ceil(total.astype(jnp.float32) * p).astype(jnp.int32)
    return jnp.clip(needed, 1, total)


def _keep(scores: Scores, kept: Bool[Array, "B V"]) -> Scores:
    return jnp.where(kept, scores, -jnp.inf)
