"""The key/value cache: one pair of arrays per layer, of a fixed capacity.

Heads stand before positions, so that one head's keys lie together: attention reads them as
they are, where any other order is transposed at every step.

Axes: B batch  S capacity in positions  T new positions  K key/value heads  H head width
"""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from bluejay.model.config import DecoderConfig
from bluejay.nn.attention import CACHE_BLOCK


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class LayerCache:
    """Keys (already rotated) and values of one layer.

    int8 has one float32 scale per position and head: the largest of the row over 127.
    """

    key: Array  # B K S H
    value: Array  # B K S H
    key_scales: Array | None = None  # B K S
    value_scales: Array | None = None  # B K S


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class Cache:
    """All layers' caches. Which positions are filled is the caller's to know."""

    layers: tuple[LayerCache, ...]


def empty_cache(
    config: DecoderConfig,
    *,
    batch: int,
    capacity: int,
    dtype: DTypeLike = jnp.float32,
    sharding: jax.sharding.Sharding | None = None,
) -> Cache:
    """Zeros for `capacity` positions, which must be a multiple of the attention's block.

    `sharding` is for all arrays, of which heads are the second axis; None is the default device.
    """
    assert capacity % CACHE_BLOCK == 0, capacity
    shape = (batch, config.num_kv_heads, capacity, config.head_dim)
    has_scales = jnp.dtype(dtype) == jnp.int8
    zeros = partial(jnp.zeros, device=sharding)

    def empty_layer() -> LayerCache:
        return LayerCache(
            key=zeros(shape, dtype),
            value=zeros(shape, dtype),
            key_scales=zeros(shape[:3], jnp.float32) if has_scales else None,
            value_scales=zeros(shape[:3], jnp.float32) if has_scales else None,
        )

    return Cache(layers=tuple(empty_layer() for _ in range(config.num_layers)))


def cache_capacity(length: int) -> int:
    """Positions of the smallest cache for so many: a multiple of the attention's block."""
    return -(-length // CACHE_BLOCK) * CACHE_BLOCK


def cache_bytes(config: DecoderConfig, *, positions: int, bytes_per_value: int) -> int:
    """Memory of one sequence's cache of that many positions, without the scales of int8."""
    per_position = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return per_position * positions * bytes_per_value


def append(
    cache: LayerCache,
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    starts: Int[Array, "B"],
) -> LayerCache:
    """Write T new positions of every row, beginning at its own start."""
    key, value = _by_head(key), _by_head(value)
    if cache.key_scales is None or cache.value_scales is None:
        return LayerCache(
            key=_written(cache.key, key.astype(cache.key.dtype), starts),
            value=_written(cache.value, value.astype(cache.value.dtype), starts),
        )
    key_codes, key_scales = _rounded(key)
    value_codes, value_scales = _rounded(value)
    return LayerCache(
        key=_written(cache.key, key_codes, starts),
        value=_written(cache.value, value_codes, starts),
        key_scales=_written(cache.key_scales, key_scales, starts),
        value_scales=_written(cache.value_scales, value_scales, starts),
    )


def widened(stored: Array, scales: Float[Array, "B K S"] | None) -> Float[Array, "B K S H"]:
    """Cached keys or values as numbers: int8 times its scales, other types as they are."""
    if scales is None:
        return stored
    return stored.astype(jnp.float32) * scales[..., None]


def _by_head(new: Float[Array, "B T K H"]) -> Float[Array, "B K T H"]:
    return jnp.transpose(new, (0, 2, 1, 3))


def _rounded(rows: Float[Array, "B K T H"]) -> tuple[Int[Array, "B K T H"], Float[Array, "B K T"]]:
    """Signed bytes and their scale; what is not a number spoils the row by its scale."""
    wide = rows.astype(jnp.float32)
    most = jnp.max(jnp.abs(wide), axis=-1)
    inverse = jnp.where(most > 0, 127.0 / most, 0.0)
    codes = jnp.round(wide * inverse[..., None])
    return jnp.nan_to_num(codes).astype(jnp.int8), most / 127.0


def _written(stored: Array, new: Array, starts: Int[Array, "B"]) -> Array:
    """One slice update per row: a batched start index would become a scatter, which copies the
    whole cache on CPU. Positions are axis 2 of both."""
    zero = jnp.zeros((), starts.dtype)
    for row in range(new.shape[0]):
        at = (jnp.asarray(row, starts.dtype), zero, starts[row], *[zero] * (stored.ndim - 3))
        stored = jax.lax.dynamic_update_slice(stored, new[row : row + 1], at)
    return stored
