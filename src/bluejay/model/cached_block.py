"""A block over its cache as one native operation, for every family.

Axes: B batch  T new position  D embed
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from bluejay.kernels.decoding import (
    CACHE_DTYPES,
    DENSE_DTYPES,
    BlockArrays,
    BlockForm,
    CacheArrays,
    Linear,
    ResidentBlocks,
    SlotRows,
    StoredWeight,
    decoder_block,
    decodes_natively,
    resident_block,
    slots_block,
)
from bluejay.kernels.resident_blocks import keep_blocks
from bluejay.kernels.slot_cache import SlotCache
from bluejay.model.cache import LayerCache
from bluejay.model.config import DecoderConfig
from bluejay.model.params import BlockParams, DecoderParams, NormParams
from bluejay.nn.quantized import QuantizedWeight
from bluejay.nn.rotary import Rotation

_ACTIVATIONS = ("gelu_tanh", "gelu_erf", "silu_gated")


def decodes_block_natively(params: BlockParams, dtype: np.dtype[Any], cache: LayerCache) -> bool:
    """Whether this block has a native kernel here and now: rows of float32, weights and cache of
    types that it knows."""
    leaves = jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, QuantizedWeight))
    return (
        decodes_natively()
        and dtype == jnp.float32
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
    moved, arrays = decoder_block(
        x,
        starts,
        _turn(turn, x),
        _cache_arrays(cache),
        _block_arrays(params),
        form=_block_form(config),
    )
    return moved, LayerCache(**arrays._asdict())


def resident_cached_block(
    blocks: ResidentBlocks,
    layer: int,
    x: Float[Array, "B T D"],
    starts: Int[Array, "B"],
    turn: Rotation | None,
    cache: LayerCache,
) -> tuple[Float[Array, "B T D"], LayerCache]:
    """As `cached_block`, of a layer whose parameters are kept."""
    moved, arrays = resident_block(
        x, starts, _turn(turn, x), _cache_arrays(cache), blocks, layer=layer
    )
    return moved, LayerCache(**arrays._asdict())


def slots_cached_block(
    blocks: ResidentBlocks,
    layer: int,
    x: Float[Array, "B T D"],
    starts: Int[Array, "B"],
    turn: Rotation | None,
    rows: SlotRows,
) -> Float[Array, "B T D"]:
    """As `resident_cached_block`, over rows of a cache that is kept as well."""
    return slots_block(x, starts, _turn(turn, x), rows, blocks, layer=layer)


def keep_cache(
    config: DecoderConfig,
    *,
    rows: int,
    capacity: int,
    dtype: DTypeLike,
    is_sparse: bool = False,
    mail: tuple[int, int] = (0, 0),
) -> SlotCache:
    """A cache of so many sequences of `capacity` positions that the native library keeps."""
    return SlotCache(
        layers=config.num_layers,
        rows=rows,
        heads=(config.num_kv_heads, capacity, config.head_dim),
        dtype=dtype,
        is_sparse=is_sparse,
        mail=mail,
    )


def keep_params(params: DecoderParams, *, config: DecoderConfig) -> DecoderParams:
    """The same parameters for decoding, with numbers in place of blocks.

    For arrays of one CPU device, and blocks that `decodes_block_natively` holds for.
    """
    assert isinstance(params.blocks, tuple), "decoding runs over unstacked blocks"
    kept = keep_blocks(
        [_block_arrays(block) for block in params.blocks],
        form=_block_form(config),
        embed=config.embed_dim,
        width=config.head_dim,
    )
    return replace(params, blocks=kept)


def _turn(turn: Rotation | None, x: Float[Array, "B T D"]) -> tuple[Array, Array]:
    if turn is None:
        nothing = jnp.zeros((*x.shape[:2], 0), jnp.float32)
        return nothing, nothing
    return turn.cos, turn.sin


def _cache_arrays(cache: LayerCache) -> CacheArrays:
    return CacheArrays(cache.key, cache.value, cache.key_scales, cache.value_scales)


def _block_arrays(params: BlockParams) -> BlockArrays:
    attention, feed_forward = params.attention, params.feed_forward
    return BlockArrays(
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
    )


def _block_form(config: DecoderConfig) -> BlockForm:
    variant = config.variant
    return BlockForm(
        heads=config.num_heads,
        kv_heads=config.num_kv_heads,
        wide=config.feed_forward_dim,
        is_sequential=variant.arrangement == "sequential",
        pairs_are_halves=config.position.kind == "rotary_half",
        activation=_ACTIVATIONS.index(variant.activation),
        eps=config.norm_eps,
    )


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
