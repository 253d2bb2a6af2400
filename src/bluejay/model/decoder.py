"""The decoder: every equation of the GPT family in one file.

A GPT-J block reads one LayerNorm and adds attention and feed-forward to one residual; the
relatives differ in the parts that `BlockVariant` and `PositionConfig` name.

Axes: B batch  T query position  S key position  D embed  N query heads  K key/value heads
      H head width  F feed-forward  V vocabulary
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bluejay.kernels.decoding import ResidentBlocks, SlotRows, decodes_natively
from bluejay.model.cache import Cache, LayerCache, append, widened
from bluejay.model.cached_block import (
    cached_block,
    decodes_block_natively,
    resident_cached_block,
    slots_cached_block,
)
from bluejay.model.config import DecoderConfig
from bluejay.model.parallel_block import parallel_block, trains_natively
from bluejay.model.params import (
    AttentionParams,
    BlockParams,
    DecoderParams,
    FeedForwardParams,
    NormParams,
    unstacked,
)
from bluejay.nn.activations import gelu_erf, gelu_tanh, silu
from bluejay.nn.attention import cached_attention, causal_attention
from bluejay.nn.contract import contract, contract_to_float32
from bluejay.nn.norms import layer_norm, rms_norm
from bluejay.nn.quantized import take_rows
from bluejay.nn.rotary import Pairing, Rotation, rotate, rotation


class Place(NamedTuple):
    """Where the T new tokens of each row stand, and the rotation that follows from it."""

    positions: Int[Array, "B T"]
    turn: Rotation | None


def forward(
    params: DecoderParams, ids: Int[Array, "B T"], *, config: DecoderConfig
) -> Float[Array, "B T V"]:
    """Logits of every position of whole sequences, in float32; no cache."""
    return logits(params, residual(params, ids, config=config), config=config)


def residual(
    params: DecoderParams, ids: Int[Array, "B T"], *, config: DecoderConfig
) -> Float[Array, "B T D"]:
    """The residual stream of whole sequences behind the last block, before the final norm.

    Blocks may be a tuple, or one stacked BlockParams, which runs as a scan.
    """
    batch, length = ids.shape
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None, :], (batch, length))
    place = _place(positions, config)
    x = embed(params, ids, positions)
    assert not isinstance(params.blocks, ResidentBlocks), "kept blocks decode only"
    if trains_natively(config, params.blocks):
        return _native_blocks(params, x, place, config)
    if isinstance(params.blocks, BlockParams):

        def step(x: Array, layer: BlockParams) -> tuple[Array, None]:
            return block(layer, x, place, None, config=config)[0], None

        x, _ = jax.lax.scan(step, x, params.blocks)
    else:
        for layer in params.blocks:
            x, _ = block(layer, x, place, None, config=config)
    return x


def _native_blocks(
    params: DecoderParams, x: Float[Array, "B T D"], place: Place, config: DecoderConfig
) -> Float[Array, "B T D"]:
    """The blocks one by one: a scan would copy what each of them keeps for the way back."""
    assert place.turn is not None
    assert not isinstance(params.blocks, ResidentBlocks), "kept blocks decode only"
    blocks = unstacked(params.blocks) if isinstance(params.blocks, BlockParams) else params.blocks
    for layer in blocks:
        x = parallel_block(layer, x, place.turn, config=config)
    return x


def run_layer(
    layer: BlockParams, x: Float[Array, "B T D"], *, config: DecoderConfig
) -> Float[Array, "B T D"]:
    """One layer over whole sequences: a step of `residual`, for models larger than memory."""
    batch, length, _ = x.shape
    positions = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32)[None, :], (batch, length))
    return block(layer, x, _place(positions, config), None, config=config)[0]


def extend(
    params: DecoderParams,
    ids: Int[Array, "B T"],
    starts: Int[Array, "B"],
    cache: Cache,
    *,
    config: DecoderConfig,
) -> tuple[Float[Array, "B T D"], Cache]:
    """Run T more tokens of each row, the first of which stands at `starts`, through the blocks.

    Gives the residual stream before the final norm (`logits` turns any part of it into logits)
    and the cache with the new keys and values. A cache may hold garbage beyond a row's length:
    no position sees it, and the next tokens overwrite it.
    """
    positions = starts[:, None] + jnp.arange(ids.shape[1], dtype=starts.dtype)[None, :]
    place = _place(positions, config)
    x = embed(params, ids, positions)
    layers: list[LayerCache] = []
    if isinstance(params.blocks, ResidentBlocks):
        for number, layer_cache in enumerate(cache.layers):
            x, new_cache = resident_cached_block(
                params.blocks, number, x, starts, place.turn, layer_cache
            )
            layers.append(new_cache)
        return x, Cache(layers=tuple(layers))
    assert isinstance(params.blocks, tuple), "decoding runs over unstacked blocks"
    for layer, layer_cache in zip(params.blocks, cache.layers, strict=True):
        if decodes_block_natively(layer, x.dtype, layer_cache):
            x, new_cache = cached_block(layer, x, starts, place.turn, layer_cache, config=config)
        else:
            x, appended = block(layer, x, place, layer_cache, config=config)
            assert appended is not None
            new_cache = appended
        layers.append(new_cache)
    return x, Cache(layers=tuple(layers))


def extend_slots(
    params: DecoderParams,
    ids: Int[Array, "B T"],
    starts: Int[Array, "B"],
    rows: SlotRows,
    *,
    config: DecoderConfig,
) -> Float[Array, "B T D"]:
    """As `extend`, of kept blocks over rows of a kept cache, which is written in place."""
    positions = starts[:, None] + jnp.arange(ids.shape[1], dtype=starts.dtype)[None, :]
    turn = _place(positions, config).turn
    x = embed(params, ids, positions)
    assert isinstance(params.blocks, ResidentBlocks), "kept caches are for kept blocks"
    for layer in range(config.num_layers):
        x = slots_cached_block(params.blocks, layer, x, starts, turn, rows)
    return x


def embed(
    params: DecoderParams, ids: Int[Array, "B T"], positions: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """Token vectors, plus learned position vectors where the family has them."""
    x: Array = take_rows(params.embedding, ids)
    if params.positions is not None:
        # Padding of the last prefill chunk may stand beyond the last learned position.
        x = x + jnp.take(params.positions, positions, axis=0, mode="clip")
    return x


def block(
    params: BlockParams,
    x: Float[Array, "B T D"],
    place: Place,
    cache: LayerCache | None,
    *,
    config: DecoderConfig,
) -> tuple[Float[Array, "B T D"], LayerCache | None]:
    """One layer, parallel (x + attention(n(x)) + feed_forward(m(x))) or sequential."""
    normed = norm(params.attention_norm, x, config=config)
    attended, cache = attention(params.attention, normed, place, cache, config=config)
    if config.variant.arrangement == "sequential":
        x = x + attended
        second = norm(params.feed_forward_norm, x, config=config)
        return x + feed_forward(params.feed_forward, second, config=config), cache
    if params.feed_forward_norm is not None:
        normed = norm(params.feed_forward_norm, x, config=config)
    return x + (attended + feed_forward(params.feed_forward, normed, config=config)), cache


def attention(
    params: AttentionParams,
    x: Float[Array, "B T D"],
    place: Place,
    cache: LayerCache | None,
    *,
    config: DecoderConfig,
) -> tuple[Float[Array, "B T D"], LayerCache | None]:
    """Causal self-attention over the sequence itself, or over the cache it is appended to."""
    query = _biased(contract("BTD,NHD->BTNH", x, params.query), params.query_bias)
    key = _biased(contract("BTD,KHD->BTKH", x, params.key), params.key_bias)
    value = _biased(contract("BTD,KHD->BTKH", x, params.value), params.value_bias)
    if place.turn is not None:
        pairing: Pairing = "half" if config.position.kind == "rotary_half" else "interleaved"
        query = rotate(query, place.turn, pairing=pairing)
        key = rotate(key, place.turn, pairing=pairing)
    if cache is None:
        mixed = causal_attention(query, key, value)
    else:
        cache = append(cache, key, value, place.positions[:, 0])
        keys, values = (
            widened(cache.key, cache.key_scales),
            widened(cache.value, cache.value_scales),
        )
        mixed = cached_attention(query, keys, values, place.positions)
    return _biased(contract("BTNH,DNH->BTD", mixed, params.out), params.out_bias), cache


def feed_forward(
    params: FeedForwardParams, x: Float[Array, "B T D"], *, config: DecoderConfig
) -> Float[Array, "B T D"]:
    """down(activation(up(x))), or down(silu(gate(x)) * up(x)) where it is gated."""
    wide = _biased(contract("BTD,FD->BTF", x, params.up), params.up_bias)
    if config.variant.activation == "silu_gated":
        wide = silu(contract("BTD,FD->BTF", x, params.gate)) * wide
    else:
        wide = _GELU[config.variant.activation](wide)
    return _biased(contract("BTF,DF->BTD", wide, params.down), params.down_bias)


def norm(
    params: NormParams | None, x: Float[Array, "B T D"], *, config: DecoderConfig
) -> Float[Array, "B T D"]:
    """LayerNorm or RMSNorm, as the family has it."""
    assert params is not None, "the spec tree gives every such norm parameters"
    if config.variant.norm == "rms":
        return rms_norm(x, params.scale, eps=config.norm_eps)
    return layer_norm(x, params.scale, params.bias, eps=config.norm_eps)


def logits(
    params: DecoderParams, x: Float[Array, "B T D"], *, config: DecoderConfig
) -> Float[Array, "B T V"]:
    """Final norm and head, in float32. Rows of the vocabulary without a token are included."""
    return _biased(unbiased_logits(params, x, config=config), params.head_bias)


def unbiased_logits(
    params: DecoderParams, x: Float[Array, "B T D"], *, config: DecoderConfig
) -> Float[Array, "B T V"]:
    """As `logits`, without the head's bias: a loss adds it in a pass that it makes anyway."""
    normed = final_norm(params, x, config=config)
    head = params.embedding if params.head is None else params.head
    return contract_to_float32("BTD,VD->BTV", normed, head)


def final_norm(
    params: DecoderParams, x: Float[Array, "B T D"], *, config: DecoderConfig
) -> Float[Array, "B T D"]:
    """Row by row where kernels promise a row's bits: XLA's norm of 8 rows of 576 values differs
    from its norm of one in the last of them."""
    if not decodes_natively() or x.shape[0] * x.shape[1] == 1:
        return norm(params.final_norm, x, config=config)

    def norm_row(row: Float[Array, "1 1 D"]) -> Float[Array, "1 1 D"]:
        # What is fused with the norm could change it: it gets the row as a single step does.
        alone = jax.lax.optimization_barrier(row)
        return norm(params.final_norm, alone, config=config)

    rows: Array = jax.lax.map(norm_row, x.reshape(-1, 1, 1, x.shape[-1]))
    return rows.reshape(x.shape)


def _place(positions: Int[Array, "B T"], config: DecoderConfig) -> Place:
    if config.position.kind == "learned":
        return Place(positions, None)
    turn = rotation(
        positions, rotary_dim=config.position.rotary_dim, base=config.position.rotary_base
    )
    return Place(positions, turn)


def _biased(x: Float[Array, "..."], bias: Float[Array, "..."] | None) -> Float[Array, "..."]:
    if bias is None:
        return x
    return x + bias.astype(x.dtype).reshape((1,) * (x.ndim - bias.ndim) + bias.shape)


_GELU: dict[str, Callable[[Array], Array]] = {"gelu_tanh": gelu_tanh, "gelu_erf": gelu_erf}
