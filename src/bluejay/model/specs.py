"""One spec per parameter; from this single tree come shapes, axes, init, counts and masks.

Logical axes: `vocab`, `embed`, `heads`, `kv_heads`, `head`, `feed_forward`, `context`; rules in
`bluejay.mesh` map them to mesh axes.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, PRNGKeyArray

from bluejay.model.config import DecoderConfig
from bluejay.model.params import (
    AttentionParams,
    BlockParams,
    DecoderParams,
    FeedForwardParams,
    NormParams,
    map_named,
    named_leaves,
)

Recipe = Literal["gptj-2021", "huggingface"]

# Standard deviation of every matrix in Hugging Face's initialisation of the family.
_HUGGINGFACE_STDDEV = 0.02
# A normal cut at 2 sigma has this standard deviation: dividing by it restores the one asked for.
_TRUNCATED_STDDEV = 0.87962566103423978


@dataclass(frozen=True, kw_only=True)
class ParamSpec:
    """What one parameter is before it has values.

    `stddev` is that of the 2021 recipe (mesh-transformer-jax layers.py): a truncated normal for
    matrices; norm scales are ones and biases zeros (`fill`). `decay` marks matrices and
    embeddings: the tensors that weight decay touches.
    """

    shape: tuple[int, ...]
    axes: tuple[str, ...]
    stddev: float = 0.0
    fill: float | None = None
    decay: bool = True

    def __post_init__(self) -> None:
        assert len(self.shape) == len(self.axes), (self.shape, self.axes)

    @property
    def num_inputs(self) -> int:
        """How many trailing axes of a matrix are summed over by `contract`."""
        own = [axis for axis in self.axes if axis != "layers"]
        return len(own) - 1 if own[0] == "embed" else 1


def decoder_specs(config: DecoderConfig) -> DecoderParams:
    """The tree of ParamSpec, with blocks unstacked: the canonical form, as on disk."""
    variant, dim = config.variant, config.embed_dim
    vocab = (config.vocab_size, dim)
    learned = config.position.kind == "learned"
    head = None if variant.tied_head else _matrix(vocab, ("vocab", "embed"), stddev=dim**-0.5)
    return DecoderParams(
        embedding=_matrix(vocab, ("vocab", "embed"), stddev=config.vocab_size**-0.5),
        positions=_matrix(
            (config.context_length, dim), ("context", "embed"), stddev=_HUGGINGFACE_STDDEV
        )
        if learned
        else None,
        blocks=tuple(_block(config) for _ in range(config.num_layers)),
        final_norm=_norm(config),
        head=head,
        head_bias=_bias((config.vocab_size,), ("vocab",)) if variant.head_bias else None,
    )


def _block(config: DecoderConfig) -> BlockParams:
    return BlockParams(
        attention_norm=_norm(config),
        attention=_attention(config),
        feed_forward=_feed_forward(config),
        feed_forward_norm=_norm(config) if config.variant.num_norms == 2 else None,
    )


def _norm(config: DecoderConfig) -> NormParams:
    shape, axes = (config.embed_dim,), ("embed",)
    bias = _bias(shape, axes) if config.variant.norm == "layer" else None
    return NormParams(scale=ParamSpec(shape=shape, axes=axes, fill=1.0, decay=False), bias=bias)


def _attention(config: DecoderConfig) -> AttentionParams:
    dim, width = config.embed_dim, config.head_dim
    queries, keys = (config.num_heads, width), (config.num_kv_heads, width)
    query_axes, key_axes = ("heads", "head"), ("kv_heads", "head")
    stddev, biased = dim**-0.5, config.variant.attention_bias
    return AttentionParams(
        query=_matrix((*queries, dim), (*query_axes, "embed"), stddev=stddev),
        key=_matrix((*keys, dim), (*key_axes, "embed"), stddev=stddev),
        value=_matrix((*keys, dim), (*key_axes, "embed"), stddev=stddev),
        out=_matrix((dim, *queries), ("embed", *query_axes), stddev=_residual_stddev(config)),
        query_bias=_bias(queries, query_axes) if biased else None,
        key_bias=_bias(keys, key_axes) if biased else None,
        value_bias=_bias(keys, key_axes) if biased else None,
        out_bias=_bias((dim,), ("embed",)) if biased else None,
    )


def _feed_forward(config: DecoderConfig) -> FeedForwardParams:
    dim, wide = config.embed_dim, config.feed_forward_dim
    up = _matrix((wide, dim), ("feed_forward", "embed"), stddev=dim**-0.5)
    biased = config.variant.feed_forward_bias
    return FeedForwardParams(
        up=up,
        down=_matrix((dim, wide), ("embed", "feed_forward"), stddev=_residual_stddev(config)),
        gate=up if config.variant.activation == "silu_gated" else None,
        up_bias=_bias((wide,), ("feed_forward",)) if biased else None,
        down_bias=_bias((dim,), ("embed",)) if biased else None,
    )


def _residual_stddev(config: DecoderConfig) -> float:
    """(2 / layers) / sqrt(embed) for both projections into the residual: the original uses the
    embedding width for the feed-forward's too, not its fan-in."""
    return 2.0 / config.num_layers / math.sqrt(config.embed_dim)


def _matrix(shape: tuple[int, ...], axes: tuple[str, ...], *, stddev: float) -> ParamSpec:
    return ParamSpec(shape=shape, axes=axes, stddev=stddev)


def _bias(shape: tuple[int, ...], axes: tuple[str, ...]) -> ParamSpec:
    return ParamSpec(shape=shape, axes=axes, fill=0.0, decay=False)


def parameter_count(specs: DecoderParams) -> int:
    """Values in all tensors, each counted once."""
    return sum(math.prod(spec.shape) for spec in named_leaves(specs).values())


def abstract_params(specs: DecoderParams, dtype: DTypeLike) -> DecoderParams:
    """The tree of jax.ShapeDtypeStruct: a restore target, and input to eval_shape."""
    return map_named(lambda _, spec: jax.ShapeDtypeStruct(spec.shape, dtype), specs)


def decay_mask(specs: DecoderParams) -> DecoderParams:
    """The tree of bool that says which tensors weight decay touches."""
    return map_named(lambda _, spec: spec.decay, specs)


def stacked_specs(specs: DecoderParams) -> DecoderParams:
    """The specs of stacked blocks: those of one block with a leading axis `layers`."""
    assert isinstance(specs.blocks, tuple)
    num_layers = len(specs.blocks)

    def stacked(_: str, spec: ParamSpec) -> ParamSpec:
        return replace(spec, shape=(num_layers, *spec.shape), axes=("layers", *spec.axes))

    one_block = replace(specs, blocks=specs.blocks[:1])
    blocks = map_named(stacked, one_block).blocks
    assert isinstance(blocks, tuple)
    return replace(specs, blocks=blocks[0])


def initialize(
    specs: DecoderParams,
    key: PRNGKeyArray,
    *,
    recipe: Recipe = "gptj-2021",
    dtype: DTypeLike = jnp.float32,
) -> DecoderParams:
    """Fresh parameters. Each tensor's values depend on the key and its own path alone.

    `gptj-2021` draws truncated normals with the original's deviations, `huggingface` N(0, 0.02).
    """

    def draw(path: str, spec: ParamSpec) -> Array:
        if spec.fill is not None:
            return jnp.full(spec.shape, spec.fill, dtype=dtype)
        own_key = jax.random.fold_in(key, _stable_hash(path))
        if recipe == "huggingface":
            return jax.random.normal(own_key, spec.shape, dtype) * jnp.asarray(
                _HUGGINGFACE_STDDEV, dtype
            )
        values = jax.random.truncated_normal(own_key, -2.0, 2.0, spec.shape, dtype)
        return values * jnp.asarray(spec.stddev / _TRUNCATED_STDDEV, dtype)

    return map_named(draw, specs)


def _stable_hash(path: str) -> int:
    """FNV-1a, 32 bit: the same on every machine and in every run, unlike hash()."""
    value = 0x811C9DC5
    for byte in path.encode():
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value
