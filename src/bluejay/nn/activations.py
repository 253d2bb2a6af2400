"""Activation functions of the feed-forward layer."""

import jax
from jaxtyping import Array, Float


def gelu_tanh(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The tanh approximation of GELU (Hendrycks and Gimpel 2016), GPT-2's and GPT-J's."""
    return jax.nn.gelu(x, approximate=True)


def gelu_erf(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Exact GELU, x * Phi(x), GPT-NeoX's."""
    return jax.nn.gelu(x, approximate=False)


def silu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x * sigmoid(x), the gate of Llama's feed-forward (Shazeer 2020, arXiv:2002.05202)."""
    return jax.nn.silu(x)
