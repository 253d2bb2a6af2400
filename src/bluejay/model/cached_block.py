"""A block over its cache as one native operation, for every family.

Axes: B batch  T new position  D embed
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bluejay.kernels.decoding import (
    CACHE_DTYPES,
    DENSE_DTYPES,
    BlockArrays,
    BlockForm,
    CacheArrays,
    Linear,
    StoredWeight,
    decoder_block,
    decodes_natively,
)
from bluejay.model.cache import LayerCache
from bluejay.model.config import DecoderConfig
from bluejay.model.params import BlockParams, NormParams
from bluejay.nn.quantized import QuantizedWeight
from bluejay.nn.rotary import Rotation

_ACTIVATIONS = ("gelu_tanh", "gelu_erf", "silu_gated")


def decodes_block_natively(
    params: BlockParams, x: Float[Array, "B T D"], cache: LayerCache
) -> bool:
    """Whether this block has a native kernel here and now: float32 rows, weights and cache of
    types that it knows."""
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, QuantizedWeight))
    return (
        decodes_natively()
        and x.dtype == jnp.float32
        and cache.key.dtype.name in CACHE_DTYPES
        and all(
            isinstance(leaf, QuantizedWeight) or leaf.dtype.name in DENSE_DTYPES for leaf in leaves
        )
    )


def cached_block(
    params: BlockParams,
    x: Float[Array, "B T D"],
    starts: Int[Array, "B"],
    turn: Rotation | None,
    cache: LayerCache,
    *,
    config: DecoderConfig,
) -> tuple[Float[Array, "B T D"], LayerCache]:
    """As `bluejay.model.decoder.block`, with starts in place of positions."""
    attention, feed_forward, variant = params.attention, params.feed_forward, config.variant
    if turn is None:
        nothing = jnp.zeros((*x.shape[:2], 0), jnp.float32)
        turn = Rotation(nothing, nothing)
    moved, arrays = decoder_block(
        x,
        starts,
        (turn.cos, turn.sin),
        CacheArrays(cache.key, cache.value, cache.key_scales, cache.value_scales),
        BlockArrays(
            [*_norm(params.attention_norm), *_norm(params.feed_forward_norm)],
            [
                _linear(attention.query, attention.query_bias),
                _linear(attention.key, attention.key_bias),
                _linear(attention.value, attention.value_bias),
                _linear(attention.out, attention.out_bias),
                _linear(feed_forward.up, feed_forward.up_bias),
                _linear(feed_forward.gate, None),
                _linear(feed_forward.down, feed_forward.down_bias),
            ],
        ),
        form=BlockForm(
            heads=config.num_heads,
            kv_heads=config.num_kv_heads,
            wide=config.feed_forward_dim,
            is_sequential=variant.arrangement == "sequential",
            pairs_are_halves=config.position.kind == "rotary_half",
            activation=_ACTIVATIONS.index(variant.activation),
            eps=config.norm_eps,
        ),
    )
    return moved, LayerCache(**arrays._asdict())


def stored_weight(weight: Any) -> StoredWeight:
    """A leaf of the parameters as the kernels take it."""
    if isinstance(weight, QuantizedWeight):
        return StoredWeight(weight.codes, weight.scales, weight.offsets)
    return StoredWeight(weight)


def _linear(weight: Any, bias: Any) -> Linear | None:
    if weight is None:
        return None
    return Linear(stored_weight(weight), None if bias is None else bias.astype(jnp.float32))


def _norm(params: NormParams | None) -> list[Array | None]:
    if params is None:
        return [None, None]
    bias = None if params.bias is None else params.bias.astype(jnp.float32)
    return [params.scale.astype(jnp.float32), bias]
