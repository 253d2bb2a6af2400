"""Operations of a training step around its products, native, each with its gradient.

All arrays are float32. Only for use where `products.native_precision()` is not None; the references
are `bluejay.nn.norms`, `bluejay.nn.losses` and the block of `bluejay.model.decoder`.

Axes: R rows  D embed  V vocabulary  B batch  T position  N heads  P rotary pairs  F feed-forward
      I = 3 D + F  O = D + F
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def _call(name: str, shapes: tuple[tuple[int, ...], ...], *operands: Array, **values: Any) -> Any:
    results = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return jax.ffi.ffi_call(name, results)(*operands, **values)


# ---- layer norm ----


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Float[Array, "R D"], scale: Float[Array, "D"], bias: Float[Array, "D"], eps: float
) -> Float[Array, "R D"]:
    """As `bluejay.nn.norms.layer_norm`."""
    return _normed(x, scale, bias, eps)[0]


def _normed(x: Array, scale: Array, bias: Array, eps: float) -> tuple[Array, tuple[Array, ...]]:
    shapes = (x.shape, (x.shape[0], 2))
    y, stats = _call("bluejay_layer_norm", shapes, x, scale, bias, eps=np.float32(eps))
    return y, (x, stats, scale)


def _normed_backward(_eps: float, kept: tuple[Array, ...], dy: Array) -> tuple[Array, ...]:
    x, stats, scale = kept
    shapes = (x.shape, scale.shape, scale.shape)
    dx, dscale, dbias = _call("bluejay_layer_norm_backward", shapes, dy, x, stats, scale)
    return dx, dscale, dbias


layer_norm.defvjp(_normed, _normed_backward)


# ---- the loss over the vocabulary ----


@jax.custom_vjp
def cross_entropy(
    logits: Float[Array, "R V"], bias: Float[Array, "V"], targets: Int[Array, "R"]
) -> tuple[Float[Array, "R"], Float[Array, "R"]]:
    """As `bluejay.nn.losses.cross_entropy` of logits + bias."""
    found: tuple[Array, Array] = _lost(logits, bias, targets)[0]
    return found


def _lost(logits: Array, bias: Array, targets: Array) -> tuple[Any, tuple[Array, ...]]:
    rows = logits.shape[0]
    shapes = ((rows,), (rows,), (rows, 2))
    loss, log_sum, stats = _call("bluejay_cross_entropy", shapes, logits, bias, targets)
    return (loss, log_sum), (logits, bias, targets, stats)


def _lost_backward(kept: tuple[Array, ...], gradients: tuple[Array, Array]) -> tuple[Any, ...]:
    logits, bias, targets, stats = kept
    shapes = (logits.shape, bias.shape)
    operands = (*gradients, logits, bias, targets, stats)
    dlogits, dbias = _call("bluejay_cross_entropy_backward", shapes, *operands)
    return dlogits, dbias, None


cross_entropy.defvjp(_lost, _lost_backward)


# ---- what lies between the two products of a GPT-J block ----


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def block_middle(
    x: Float[Array, "B T I"],
    up_bias: Float[Array, "F"],
    cos: Float[Array, "T P"],
    sin: Float[Array, "T P"],
    num_heads: int,
) -> Float[Array, "B T O"]:
    """Causal attention of query, key and value (the first 3 D of I, the first two turned by
    interleaved rotary pairs), then gelu_tanh of the last F of I plus their bias."""
    return _mixed(x, up_bias, cos, sin, num_heads)[0]


def _mixed(
    x: Array, up_bias: Array, cos: Array, sin: Array, num_heads: int
) -> tuple[Array, tuple[Array, ...]]:
    batch, length, width = x.shape
    embed = (width - up_bias.shape[0]) // 3
    shapes = ((batch, length, embed + up_bias.shape[0]), (batch, num_heads, length))
    operands = (x, up_bias, cos, sin)
    out, log_sum = _call("bluejay_block_middle", shapes, *operands, heads=np.int64(num_heads))
    return out, (out, log_sum, *operands)


def _mixed_backward(num_heads: int, kept: tuple[Array, ...], dresult: Array) -> tuple[Any, ...]:
    x, up_bias = kept[2:4]
    shapes = (x.shape, up_bias.shape)
    name = "bluejay_block_middle_backward"
    dx, dbias = _call(name, shapes, dresult, *kept, heads=np.int64(num_heads))
    return dx, dbias, None, None


block_middle.defvjp(_mixed, _mixed_backward)
