"""The shapes that engines are compared on, and random weights for them, tensor by tensor.

A tensor is a function of its name and shape alone, so every engine's file holds the same weights
and a check of one against another is possible. Names are those of transformers' GPT-J.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

SPREAD = 0.02
_POOL = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A GPT-J: parallel block with one layer norm, feed-forward of four widths."""

    layers: int
    width: int
    heads: int
    rotary: int
    vocabulary: int = 50400
    context: int = 2048

    @property
    def head(self) -> int:
        return self.width // self.heads

    @property
    def feed_forward(self) -> int:
        return 4 * self.width

    def with_layers(self, layers: int | None) -> "Shape":
        return self if layers is None else replace(self, layers=layers)

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """(name, shape) of every tensor, layers in order."""
        d, f, v = self.width, self.feed_forward, self.vocabulary
        yield "transformer.wte.weight", (v, d)
        for layer in range(self.layers):
            start = f"transformer.h.{layer}."
            yield start + "ln_1.weight", (d,)
            yield start + "ln_1.bias", (d,)
            for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
                yield f"{start}attn.{name}.weight", (d, d)
            yield start + "mlp.fc_in.weight", (f, d)
            yield start + "mlp.fc_in.bias", (f,)
            yield start + "mlp.fc_out.weight", (d, f)
            yield start + "mlp.fc_out.bias", (d,)
        yield "transformer.ln_f.weight", (d,)
        yield "transformer.ln_f.bias", (d,)
        yield "lm_head.weight", (v, d)
        yield "lm_head.bias", (v,)

    def config(self, dtype: str) -> dict[str, object]:
        """The body of config.json."""
        return {
            "model_type": "gptj",
            "architectures": ["GPTJForCausalLM"],
            "activation_function": "gelu_new",
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "bos_token_id": 50256,
            "eos_token_id": 50256,
            "layer_norm_epsilon": 1e-5,
            "n_embd": self.width,
            "n_head": self.heads,
            "n_inner": self.feed_forward,
            "n_layer": self.layers,
            "n_positions": self.context,
            "rotary_dim": self.rotary,
            "tie_word_embeddings": False,
            "dtype": dtype,
            "use_cache": True,
            "vocab_size": self.vocabulary,
        }


SHAPES = {
    "305m": Shape(layers=20, width=1024, heads=16, rotary=32),
    "6b": Shape(layers=28, width=4096, heads=16, rotary=64),
}


def values(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Normal with a spread of 0.02, norm scales around 1.

    Large tensors repeat one pool of four million numbers, scaled row by row: drawing 6 billion
    would take minutes, and no engine's speed depends on them.
    """
    random = np.random.default_rng(zlib.crc32(name.encode()))
    size = int(np.prod(shape))
    drawn = random.standard_normal(min(size, _POOL), np.float32)
    array = np.resize(drawn, size).reshape(shape)
    array *= np.float32(SPREAD)
    if len(shape) == 2:
        array *= random.uniform(0.8, 1.2, (shape[0], 1)).astype(np.float32)
    if "ln_" in name and name.endswith("weight"):
        array += np.float32(1)
    return array
