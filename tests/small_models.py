"""Small random decoders whose parameters are all drawn, biases and norm scales included."""

import jax

from bluejay.model.config import DecoderConfig
from bluejay.model.params import DecoderParams, map_named
from bluejay.model.specs import decoder_specs, initialize


def drawn_params(config: DecoderConfig, *, seed: int = 0) -> DecoderParams:
    """Parameters of scale 1/sqrt(width) around their usual values: logits spread over several
    nats, so that greedy decoding has clear winners."""
    base = initialize(decoder_specs(config), jax.random.key(seed))
    width = config.embed_dim**-0.5

    def draw(path: str, leaf: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(seed + 1), hash_of(path))
        return leaf + width * jax.random.normal(key, leaf.shape, leaf.dtype)

    return map_named(draw, base)


def hash_of(path: str) -> int:
    return sum(ord(char) * (index + 1) for index, char in enumerate(path))
