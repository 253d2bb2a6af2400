"""The key/value cache: one pair of arrays per layer, of a fixed capacity.

Axes: B batch  S capacity in positions  T new positions  K key/value heads  H head width
"""

from dataclasses import dataclass

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
    """Keys (already rotated) and values of one layer."""

    key: Array  # B S K H
    value: Array  # B S K H


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class Cache:
    """All layers' caches. Which positions are filled is the caller's to know."""

    layers: tuple[LayerCache, ...]


def empty_cache(
    config: DecoderConfig, *, batch: int, capacity: int, dtype: DTypeLike = jnp.float32
) -> Cache:
    """Zeros for `capacity` positions, which must be a multiple of the attention's block."""
    assert capacity % CACHE_BLOCK == 0, capacity
    shape = (batch, capacity, config.num_kv_heads, config.head_dim)
    return Cache(
        layers=tuple(
            LayerCache(key=jnp.zeros(shape, dtype), value=jnp.zeros(shape, dtype))
            for _ in range(config.num_layers)
        )
    )


def cache_bytes(config: DecoderConfig, *, positions: int, bytes_per_value: int) -> int:
    """Memory of one sequence's cache of that many positions."""
    per_position = 2 * config.num_layers * config.num_kv_heads * config.head_dim
    return per_position * positions * bytes_per_value


def append(
    cache: LayerCache,
    key: Float[Array, "B T K H"],
    value: Float[Array, "B T K H"],
    starts: Int[Array, "B"],
) -> LayerCache:
    """Write T new positions of every row, beginning at its own start.

    One slice update per row: a batched start index would become a scatter, which copies the
    whole cache on CPU.
    """
    keys, values = cache.key, cache.value
    for row in range(key.shape[0]):
        zero = jnp.zeros((), starts.dtype)
        at = (jnp.asarray(row, starts.dtype), starts[row], zero, zero)
        keys = jax.lax.dynamic_update_slice(keys, key[row : row + 1].astype(keys.dtype), at)
        values = jax.lax.dynamic_update_slice(values, value[row : row + 1].astype(values.dtype), at)
    return LayerCache(key=keys, value=values)
