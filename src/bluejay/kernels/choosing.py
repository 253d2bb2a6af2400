"""Choosing ids from logits in native code.

Axes: B batch  V vocabulary
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, UInt32


class ChoiceFilters(NamedTuple):
    """How each row chooses: temperature (0 takes the largest), then filters; each has a neutral
    value, 1 or for min_p and top_k 0."""

    temperature: Float32[Array, "B"]
    top_p: Float32[Array, "B"]
    min_p: Float32[Array, "B"]
    typical_p: Float32[Array, "B"]
    top_k: Int32[Array, "B"]


class NativeChoice(NamedTuple):
    """The chosen ids; log probability = logit - largest - log_sum, NaN where a logit is none."""

    ids: Int32[Array, "B"]
    largest: Float32[Array, "B"]
    log_sum: Float32[Array, "B"]


def choose_ids(
    logits: Float32[Array, "B V"],
    processed: Float32[Array, "B V"],
    allowed: Bool[Array, "B V"],
    filters: ChoiceFilters,
    bits: UInt32[Array, "B"],
) -> NativeChoice:
    """Choose among the allowed ids from `processed`, with 32 random bits per row; report the
    probabilities that `logits` have among them.

    Definitions are those of `bluejay.generation.sampling`; so are the whole numbers that stand
    for probabilities, up to the last bits of an exponential. A row does not depend on the others.
    """
    rows = logits.shape[0]
    numbers = jax.ShapeDtypeStruct((rows,), jnp.float32)
    shapes = [jax.ShapeDtypeStruct((rows,), jnp.int32), numbers, numbers]
    found = jax.ffi.ffi_call("bluejay_choose", shapes)(logits, processed, allowed, *filters, bits)
    return NativeChoice(*found)
