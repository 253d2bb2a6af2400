"""The key/value cache: one pair of arrays per layer, of a fixed capacity.

Heads stand before positions, so that one head's keys lie together: attention reads them as
they are, where any other order is transposed at every step.

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

    key: Array  # B K S H
    value: Array  # B K S H


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
    shape = (batch, config.num_kv_heads, capacity, config.head_dim)
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
    """Write T new positions of every row, beginning at its own start."""
    return LayerCache(
        key=_written(cache.key, key, starts), value=_written(cache.value, value, starts)
    )


def _written(
    stored: Float[Array, "B K S H"], new: Float[Array, "B T K H"], starts: Int[Array, "B"]
) -> Float[Array, "B K S H"]:
    """One slice update per row: a batched start index would become a scatter, which copies the
    whole cache on CPU."""
    by_head = jnp.transpose(new, (0, 2, 1, 3)).astype(stored.dtype)
    zero = jnp.zeros((), starts.dtype)
    for row in range(new.shape[0]):
        at = (jnp.asarray(row, starts.dtype), zero, starts[row], zero)
        stored = jax.lax.dynamic_update_slice(stored, by_head[row : row + 1], at)
    return stored
