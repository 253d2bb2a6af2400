"""The GPT-J block as two products and what lies between them: how it trains on a CPU.

Query, key, value and the way up read the same normed rows, the way out and the way down add to the
same residual: each group is one product.
Axes: B batch  T position  D embed
"""

from dataclasses import replace

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bluejay.kernels.products import matmul, native_precision
from bluejay.kernels.training import block_middle, layer_norm
from bluejay.model.config import BlockVariant, DecoderConfig
from bluejay.model.params import BlockParams
from bluejay.nn.rotary import Rotation


def trains_natively(config: DecoderConfig, blocks: BlockParams | tuple[BlockParams, ...]) -> bool:
    """Whether blocks of this kind, of float32 parameters, have native kernels here and now."""
    # GPT-J's block; what concerns the head alone may differ.
    is_fitting = (
        replace(config.variant, head_bias=True, tied_head=False) == BlockVariant()
        and config.position.kind == "rotary_interleaved"
        and config.num_kv_heads == config.num_heads
    )
    is_float32 = all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(blocks))
    return is_fitting and is_float32 and native_precision() is not None


def parallel_block(
    params: BlockParams, x: Float[Array, "B T D"], turn: Rotation, *, config: DecoderConfig
) -> Float[Array, "B T D"]:
    """As `bluejay.model.decoder.block` without a cache, for rows whose positions are the same."""
    precision = native_precision()
    assert precision is not None, "only where trains_natively() says so"
    batch, length, embed = x.shape
    rows = x.reshape(-1, embed)
    norm, attention, feed_forward = params.attention_norm, params.attention, params.feed_forward
    normed = layer_norm(rows, norm.scale, norm.bias, config.norm_eps)
    inward = (attention.query, attention.key, attention.value, feed_forward.up)
    weight = jnp.concatenate([w.reshape(-1, embed) for w in inward])
    wide = matmul(normed, weight, precision)
    middle = block_middle(
        wide.reshape(batch, length, -1),
        feed_forward.up_bias,
        turn.cos[0],
        turn.sin[0],
        config.num_heads,
    )
    outward = (attention.out, feed_forward.down)
    weight = jnp.concatenate([w.reshape(embed, -1) for w in outward], axis=1)
    added = matmul(middle.reshape(batch * length, -1), weight, precision)
    moved: Array = x + (added + feed_forward.down_bias[None, :]).reshape(x.shape)
    return moved
