"""What a model is made of and what it needs, from its config alone: no tensor is read."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from bluejay.model.cache import cache_bytes
from bluejay.model.config import DecoderConfig
from bluejay.model.flops import forward_flops_per_token
from bluejay.model.params import named_leaves
from bluejay.model.specs import decoder_specs

BYTES_PER_VALUE = {"float32": 4, "bfloat16": 2, "float16": 2}
CACHE_POSITIONS = 2048
"""The cache is stated for so many tokens, GPT-J's context, whatever the model's own is."""

_BLOCK = re.compile(r"^blocks\.\d+\.")


@dataclass(frozen=True, kw_only=True)
class TensorGroup:
    """Tensors of one name and shape; in a name `*` stands for the number of the block."""

    name: str
    shape: tuple[int, ...]
    num_tensors: int

    @property
    def parameters(self) -> int:
        return self.num_tensors * math.prod(self.shape)


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Sizes of a decoder. Memory in bytes by dtype; FLOPs of a forward pass per token.

    `attended_positions` is how many the FLOPs count attention to: the cache's, or the whole
    context if that is shorter.
    """

    config: DecoderConfig
    tensors: tuple[TensorGroup, ...]
    parameters: int
    weight_bytes: Mapping[str, int]
    cache_bytes: Mapping[str, int]
    attended_positions: int
    flops_per_token: float

    @property
    def num_tensors(self) -> int:
        return sum(group.num_tensors for group in self.tensors)

    def groups(self) -> tuple[TensorGroup, ...]:
        """The tensors with those of all blocks together, in the order of the forward pass."""
        merged: dict[tuple[str, tuple[int, ...]], int] = {}
        for tensor in self.tensors:
            key = (_BLOCK.sub("blocks.*.", tensor.name), tensor.shape)
            merged[key] = merged.get(key, 0) + tensor.num_tensors
        return tuple(
            TensorGroup(name=name, shape=shape, num_tensors=count)
            for (name, shape), count in merged.items()
        )


def model_info(config: DecoderConfig) -> ModelInfo:
    """Everything `bluejay info` shows."""
    tensors = tuple(
        TensorGroup(name=name, shape=spec.shape, num_tensors=1)
        for name, spec in named_leaves(decoder_specs(config)).items()
    )
    parameters = sum(tensor.parameters for tensor in tensors)
    attended = min(CACHE_POSITIONS, config.context_length)
    return ModelInfo(
        config=config,
        tensors=tensors,
        parameters=parameters,
        weight_bytes={name: parameters * size for name, size in BYTES_PER_VALUE.items()},
        cache_bytes={
            name: cache_bytes(config, positions=CACHE_POSITIONS, bytes_per_value=size)
            for name, size in BYTES_PER_VALUE.items()
        },
        attended_positions=attended,
        flops_per_token=forward_flops_per_token(config, visible_positions=attended),
    )


def description(config: DecoderConfig) -> list[tuple[str, str]]:
    """The config in words: (what, how it is) pairs."""
    variant, position = config.variant, config.position
    heads = f"{config.num_heads} of width {config.head_dim}"
    if config.num_kv_heads != config.num_heads:
        heads += f", {config.num_kv_heads} of keys and values"
    parts = "side by side" if variant.arrangement == "parallel" else "one after the other"
    norms = "one norm" if variant.num_norms == 1 else "a norm each"
    kind = "LayerNorm" if variant.norm == "layer" else "RMSNorm"
    activation = {
        "gelu_tanh": "GELU (tanh)",
        "gelu_erf": "GELU (exact)",
        "silu_gated": "gated SiLU",
    }[variant.activation]
    if position.kind == "learned":
        positions = "learned"
    else:
        pairs = "neighbours" if position.kind == "rotary_interleaved" else "halves"
        share = f"{position.rotary_dim} of {config.head_dim} values of a head"
        positions = f"rotary, {share}, pairing {pairs}, base {position.rotary_base:,.0f}"
    head = "the embedding" if variant.tied_head else "a matrix of its own"
    head += ", with a bias" if variant.head_bias else ""
    return [
        ("layers", f"{config.num_layers} of width {config.embed_dim:,}"),
        ("heads", heads),
        ("feed-forward", f"{config.feed_forward_dim:,} wide, {activation}"),
        ("vocabulary", f"{config.vocab_size:,} ids; the head is {head}"),
        ("context", f"{config.context_length:,} tokens; positions {positions}"),
        ("block", f"attention and feed-forward {parts}, {norms} ({kind})"),
    ]
