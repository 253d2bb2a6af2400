"""Arithmetic of a forward pass: two operations per multiply-add of every matrix product."""

import math

from bluejay.model.config import DecoderConfig
from bluejay.model.params import named_leaves
from bluejay.model.specs import decoder_specs


def forward_flops_per_token(config: DecoderConfig, *, visible_positions: float) -> float:
    """FLOPs of one token's forward pass that attends to that many positions.

    2 per weight of every matrix that is multiplied (the embedding is looked up unless it is also
    the head), and 4 * heads * head width per visible position and layer for scores and mixture.
    """
    specs = decoder_specs(config)
    matrices: int = sum(
        math.prod(spec.shape)
        for path, spec in named_leaves(specs).items()
        if spec.decay and path not in ("embedding", "positions")
    )
    if config.variant.tied_head:
        matrices += config.vocab_size * config.embed_dim
    attention = 4.0 * config.num_layers * config.num_heads * config.head_dim * visible_positions
    return 2.0 * matrices + attention
