"""The one product of activations and weights.

Every weight is stored with its output axes first and its input axes last, as published torch
checkpoints and block-quantized files store theirs: import is a memory map, a block of 32 input
values lies together, and the embedding serves as a tied head unchanged. The decision and the
figures behind it: docs/decisions/0009-output-major-weights.md.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# A weight as parameter trees carry it. Quantized and low-rank leaves join this alias; `contract`
# stays the only function that cares which of them it meets.
Weight = Array


def contract(equation: str, x: Float[Array, "..."], w: Weight) -> Float[Array, "..."]:
    """Einsum of activations with one weight, in the activations' dtype.

    Products of float32 are true float32 products on every device (a GPU's default would round
    the operands to TF32); narrower dtypes accumulate in float32 and are rounded once.
    """
    product = jnp.einsum(
        equation,
        x,
        w.astype(x.dtype),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return product.astype(x.dtype)


def contract_to_float32(equation: str, x: Float[Array, "..."], w: Weight) -> Float[Array, "..."]:
    """As `contract`, but keeps the float32 accumulator: logits and attention scores."""
    return jnp.einsum(
        equation,
        x,
        w.astype(x.dtype),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
