"""Rotary position embedding (Su et al. 2021, arXiv:2104.09864), partial, in both pairings.

Axes: B batch  T position  N heads  H head width  R rotary width (even, at most H)  P pairs (R/2)
"""

from typing import Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

Pairing = Literal["interleaved", "half"]


class Rotation(NamedTuple):
    """Cosine and sine of every rotary angle of a batch of positions, in float32."""

    cos: Float[Array, "B T P"]
    sin: Float[Array, "B T P"]


def rotation(positions: Int[Array, "B T"], *, rotary_dim: int, base: float) -> Rotation:
    """Angles position * base^(-2i/R) for i below P: the rotary width divides, not the head's."""
    exponent = jnp.arange(0, rotary_dim, 2, dtype=jnp.float32) / rotary_dim
    inverse_frequency = 1.0 / (jnp.float32(base) ** exponent)
    angle = positions.astype(jnp.float32)[:, :, None] * inverse_frequency[None, None, :]
    return Rotation(cos=jnp.cos(angle), sin=jnp.sin(angle))


def rotate(
    x: Float[Array, "B T N H"], turn: Rotation, *, pairing: Pairing
) -> Float[Array, "B T N H"]:
    """Turn the first R of H values of each head; the others pass through.

    `interleaved` pairs (0, 1), (2, 3), … as GPT-J and CodeGen do; `half` pairs i with i + P as
    GPT-NeoX and Llama do.
    """
    half = turn.cos.shape[-1]
    turning, passing = x[..., : 2 * half].astype(jnp.float32), x[..., 2 * half :]
    cos, sin = turn.cos[:, :, None, :], turn.sin[:, :, None, :]
    first, second = _split(turning, pairing)
    turned = _join(first * cos - second * sin, second * cos + first * sin, pairing)
    return jnp.concatenate([turned.astype(x.dtype), passing], axis=-1)


def _split(
    x: Float[Array, "B T N R"], pairing: Pairing
) -> tuple[Float[Array, "B T N P"], Float[Array, "B T N P"]]:
    if pairing == "interleaved":
        return x[..., 0::2], x[..., 1::2]
    half = x.shape[-1] // 2
    return x[..., :half], x[..., half:]


def _join(
    first: Float[Array, "B T N P"], second: Float[Array, "B T N P"], pairing: Pairing
) -> Float[Array, "B T N R"]:
    if pairing == "interleaved":
        pairs = jnp.stack([first, second], axis=-1)
        return pairs.reshape(*first.shape[:-1], 2 * first.shape[-1])
    return jnp.concatenate([first, second], axis=-1)
