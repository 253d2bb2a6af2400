"""Probabilities as whole numbers, and exact selection from them without sorting.

Float sums depend on the order in which they are taken, whole numbers do not: what is kept and what
is drawn has the same bits alone, in any batch, on any number of threads. It also makes sums
monotonic, so that a bisection finds exactly the threshold that a sort would.

Axes: B batch  V vocabulary
"""

from collections.abc import Callable
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32

# XLA's CPU backend takes the largest 256 of 50,400 in 0.16 ms, a sort in 10 ms.
NUM_CANDIDATES: Final = 256
BLOCK: Final = 256


class Weights(NamedTuple):
    """The softmax of scores in whole numbers that sum to `total`, at most about 2**30.

    `largest` and `log_sum` are logsumexp in two parts: probability = exp(score - largest -
    log_sum). A probability under 2**-30 may have the weight 0.
    """

    of_ids: Int32[Array, "B V"]
    total: Int32[Array, "B"]
    largest: Float32[Array, "B"]
    log_sum: Float32[Array, "B"]


def weigh(scores: Float32[Array, "B V"]) -> Weights:
    """Weights of scores, of which -inf counts as removed; each row needs a finite one."""
    largest = jnp.max(scores, axis=-1, keepdims=True)
    parts = jnp.exp(scores - largest)
    # The sum of the parts, in whole numbers whose sum 32 bits hold; rounded up, so that the
    # weights never sum to more than 2**30 and their roundings. At the most this costs
    # log2(1 + V / resolution) of their 30 bits: one bit for 50,400 ids.
    resolution = 2.0 ** min(30, 32 - scores.shape[-1].bit_length())
    coarse = jnp.sum(
        jnp.ceil(parts * resolution).astype(jnp.int32).astype(jnp.uint32), -1, keepdims=True
    )
    scale = jnp.float32(resolution * 2.0**30) / coarse.astype(jnp.float32)
    of_ids = jnp.round(parts * scale).astype(jnp.int32)
    total = jnp.sum(of_ids, axis=-1)
    log_sum = jnp.log(total.astype(jnp.float32) / scale[:, 0])
    return Weights(of_ids, total, largest[:, 0], log_sum)


def descending_order(scores: Float32[Array, "B V"]) -> Int32[Array, "B V"]:
    """Whole numbers that are smaller for larger scores, and equal for equal ones."""
    scores = jnp.where(scores == 0, jnp.float32(0), scores)  # -0 is 0
    bits = lax.bitcast_convert_type(scores, jnp.int32)
    return ~(bits ^ ((bits >> 31) & 0x7FFFFFFF))


def rank_threshold(
    scores: Float32[Array, "B V"], weights: Int32[Array, "B V"], needed: Int32[Array, "B"]
) -> Int32[Array, "B"]:
    """The order (see `descending_order`) of the last score of the smallest leading set that
    weighs `needed`.

    Usually one of the largest few scores is the answer; else a bisection over the order's 32 bits
    finds it, counting all ids at each step.
    """
    order = descending_order(scores)
    _, leaders = lax.top_k(scores, min(NUM_CANDIDATES, scores.shape[-1]))
    leading_order = jnp.take_along_axis(order, leaders, axis=-1)
    reached = jnp.cumsum(jnp.take_along_axis(weights, leaders, axis=-1), axis=-1)
    num_short = jnp.sum(reached < needed[:, None], axis=-1, dtype=jnp.int32)
    is_leader = num_short < leaders.shape[-1]
    place = jnp.minimum(num_short, leaders.shape[-1] - 1)
    low = jnp.take_along_axis(leading_order, place[:, None], axis=-1)[:, 0]
    high = jnp.where(is_leader, low, jnp.max(order, axis=-1))

    def reaches(threshold: jax.Array) -> jax.Array:
        inside = order <= threshold[:, None]
        return jnp.sum(jnp.where(inside, weights, 0), axis=-1) >= needed

    return _bisect(low, high, reaches)


def keep_leading(
    order: Int32[Array, "B V"], threshold: Int32[Array, "B"], count: Int32[Array, "B"]
) -> Bool[Array, "B V"]:
    """The first `count` ids by (order, id), given the order of the last of them."""
    before = order < threshold[:, None]
    tied = order == threshold[:, None]
    wanted = count - jnp.sum(before, axis=-1, dtype=jnp.int32)
    ids = jnp.arange(order.shape[-1], dtype=jnp.int32)[None, :]

    def reaches(last: jax.Array) -> jax.Array:
        return jnp.sum(tied & (ids <= last[:, None]), axis=-1, dtype=jnp.int32) >= wanted

    last_id = jnp.full_like(count, order.shape[-1] - 1)
    # Ties at the threshold are rare: without them all tied ids stay and nothing is searched.
    all_stay = jnp.sum(tied, axis=-1, dtype=jnp.int32) <= wanted
    last = _bisect(jnp.where(all_stay, last_id, 0), last_id, reaches)
    return before | (tied & (ids <= last[:, None]))


def pick(weights: Int32[Array, "B V"], targets: Int32[Array, "B"]) -> Int32[Array, "B"]:
    """The first id whose weight, added to those of all lower ids, exceeds the target.

    Targets lie below the rows' sums, so an id of weight 0 is never picked. Sums of blocks come
    first: a running sum over all ids would take 0.6 ms for 50,400.
    """
    batch, size = weights.shape
    blocks = jnp.pad(weights, ((0, 0), (0, -size % BLOCK))).reshape(batch, -1, BLOCK)
    sums = jnp.sum(blocks, axis=-1)
    ends = jnp.cumsum(sums, axis=-1)
    block = jnp.sum(ends <= targets[:, None], axis=-1, keepdims=True, dtype=jnp.int32)
    start = jnp.take_along_axis(ends - sums, block, axis=-1)
    inside = jnp.take_along_axis(blocks, block[:, :, None], axis=1)[:, 0]
    reached = start + jnp.cumsum(inside, axis=-1)
    lane = jnp.sum(reached <= targets[:, None], axis=-1, dtype=jnp.int32)
    return jnp.minimum(block[:, 0] * BLOCK + lane, size - 1)


def pick_largest(scores: Float32[Array, "B V"]) -> Int32[Array, "B"]:
    """The id of the largest score, the lowest among equals.

    `lax.top_k` promises that order, and XLA's CPU backend runs it three times as fast as argmax.
    """
    scores = jnp.where(scores == 0, jnp.float32(0), scores)  # -0 is 0
    return lax.top_k(scores, 1)[1][:, 0]


def _bisect(
    low: jax.Array, high: jax.Array, reaches: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Per row, the smallest number from `low` to `high` that reaches; `high` is known to."""

    def is_open(bounds: tuple[jax.Array, jax.Array]) -> jax.Array:
        return jnp.any(bounds[0] < bounds[1])

    def halve(bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = (low & high) + ((low ^ high) >> 1)  # rounds down and cannot overflow
        enough = reaches(middle)
        is_open = low < high
        return (
            jnp.where(is_open & ~enough, middle + 1, low),
            jnp.where(is_open & enough, middle, high),
        )

    return lax.while_loop(is_open, halve, (low, high))[0]
