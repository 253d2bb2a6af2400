"""The tree of parameters: frozen dataclasses whose fields are arrays, or anything else per leaf.

The same classes carry arrays, specs, shapes, masks and shardings, so their fields are typed as
`Any` (None where the family has no such tensor) and hold their shapes as comments; shapes are
checked at load and at function borders.
Weights lie output axes first (see `bluejay.nn.contract`).

Axes: D embed  N query heads  K key/value heads  H head width  F feed-forward  V vocabulary
      C context length
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass

from bluejay.kernels.decoding import ResidentBlocks

Leaf = Any


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class NormParams:
    """Scale, and the bias that only LayerNorm has."""

    scale: Leaf  # D
    bias: Leaf = None  # D


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class AttentionParams:
    """Projections into and out of the heads; biases only where the family has them."""

    query: Leaf  # N H D
    key: Leaf  # K H D
    value: Leaf  # K H D
    out: Leaf  # D N H
    query_bias: Leaf = None  # N H
    key_bias: Leaf = None  # K H
    value_bias: Leaf = None  # K H
    out_bias: Leaf = None  # D


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class FeedForwardParams:
    """Up and down; `gate` only where the activation is gated."""

    up: Leaf  # F D
    down: Leaf  # D F
    gate: Leaf = None  # F D
    up_bias: Leaf = None  # F
    down_bias: Leaf = None  # D


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class BlockParams:
    """One layer. A single `attention_norm` feeds both parts of a GPT-J block."""

    attention_norm: NormParams
    attention: AttentionParams
    feed_forward: FeedForwardParams
    feed_forward_norm: NormParams | None = None


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class DecoderParams:
    """The whole decoder. `blocks` is one BlockParams per layer, or one whose leaves are stacked
    on a leading layer axis (training scans over it), or numbers of blocks that the kernels keep
    (decoding)."""

    embedding: Leaf  # V D
    blocks: tuple[BlockParams, ...] | BlockParams | ResidentBlocks
    final_norm: NormParams
    positions: Leaf = None  # C D
    head: Leaf = None  # V D
    head_bias: Leaf = None  # V


def named_leaves(tree: object, prefix: str = "") -> dict[str, Leaf]:
    """Leaves by dotted path, such as `blocks.0.attention.query`; absent ones are left out.

    The paths are the tensor names of the native checkpoint format.
    """
    if tree is None:
        return {}
    if isinstance(tree, tuple) and not hasattr(tree, "_fields"):
        parts = [(str(index), item) for index, item in enumerate(tree)]
    elif is_dataclass(tree) and type(tree).__module__ == __name__:
        parts = [(field.name, getattr(tree, field.name)) for field in fields(tree)]
    else:
        return {prefix: tree}
    found: dict[str, Leaf] = {}
    for name, item in parts:
        found |= named_leaves(item, f"{prefix}.{name}" if prefix else name)
    return found


def map_named(function: Callable[[str, Leaf], Leaf], tree: DecoderParams) -> DecoderParams:
    """The same tree with every leaf replaced by function(path, leaf)."""
    mapped: DecoderParams = _map_named(function, tree, "")
    return mapped


def _map_named(function: Callable[[str, Leaf], Leaf], tree: Any, prefix: str) -> Any:
    if tree is None:
        return None
    at = f"{prefix}." if prefix else ""
    if isinstance(tree, tuple):
        return tuple(_map_named(function, item, f"{at}{i}") for i, item in enumerate(tree))
    if is_dataclass(tree) and type(tree).__module__ == __name__:
        mapped = {
            field.name: _map_named(function, getattr(tree, field.name), f"{at}{field.name}")
            for field in fields(tree)
        }
        return tree.__class__(**mapped)
    return function(prefix, tree)


def stack_blocks(params: DecoderParams) -> DecoderParams:
    """Blocks with leaves [layers, ...] in place of a tuple of blocks: what training scans over."""
    if isinstance(params.blocks, BlockParams):
        return params
    assert isinstance(params.blocks, tuple), "numbers of blocks have no leaves to stack"
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *params.blocks)
    return replace(params, blocks=stacked)


def unstack_blocks(params: DecoderParams) -> DecoderParams:
    """The canonical form, as on disk: a tuple of blocks."""
    stacked = params.blocks
    return (
        params
        if not isinstance(stacked, BlockParams)
        else replace(params, blocks=unstacked(stacked))
    )


@jax.custom_vjp
def unstacked(blocks: BlockParams) -> tuple[BlockParams, ...]:
    """Blocks with leaves [layers, ...] as a tuple of blocks.

    Its gradient is one stack; that of plain slices would add as many padded stacks as layers.
    """
    num_layers = jax.tree.leaves(blocks)[0].shape[0]
    return tuple(jax.tree.map(lambda leaf, n=layer: leaf[n], blocks) for layer in range(num_layers))


def _stack_gradients(_: None, gradients: tuple[BlockParams, ...]) -> tuple[BlockParams]:
    return (jax.tree.map(lambda *leaves: jnp.stack(leaves), *gradients),)


unstacked.defvjp(lambda blocks: (unstacked(blocks), None), _stack_gradients)
