"""Normalisation over the last axis, always computed in float32.

Axes: ... any leading axes  D embed
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bluejay.kernels.products import native_precision
from bluejay.kernels.training import layer_norm as native_layer_norm


def layer_norm(
    x: Float[Array, "... D"], scale: Float[Array, "D"], bias: Float[Array, "D"], *, eps: float
) -> Float[Array, "... D"]:
    """LayerNorm with the biased (population) variance (Ba et al. 2016, arXiv:1607.06450)."""
    if native_precision() is not None and x.dtype == scale.dtype == bias.dtype == jnp.float32:
        return native_layer_norm(x.reshape(-1, x.shape[-1]), scale, bias, eps).reshape(x.shape)
    wide = x.astype(jnp.float32)
    centered = wide - jnp.mean(wide, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(centered), axis=-1, keepdims=True)
    normed = centered * jax.lax.rsqrt(variance + eps)
    return _affine(normed, scale, bias).astype(x.dtype)


def rms_norm(
    x: Float[Array, "... D"], scale: Float[Array, "D"], *, eps: float
) -> Float[Array, "... D"]:
    """RMSNorm: no centering, no bias (Zhang and Sennrich 2019, arXiv:1910.07467)."""
    wide = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
    normed = wide * jax.lax.rsqrt(mean_square + eps)
    return (normed * _like(scale, wide)).astype(x.dtype)


def _affine(
    normed: Float[Array, "... D"], scale: Float[Array, "D"], bias: Float[Array, "D"]
) -> Float[Array, "... D"]:
    return normed * _like(scale, normed) + _like(bias, normed)


def _like(vector: Float[Array, "D"], x: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """The vector in float32 with the rank of x, for rank promotion is an error here."""
    return vector.astype(jnp.float32).reshape((1,) * (x.ndim - 1) + vector.shape)
