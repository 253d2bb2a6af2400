"""Small random decoders of every family for tests of speculation, with what is asked of them."""

from dataclasses import replace
from functools import cache
from typing import Any

import jax
import numpy as np

from bluejay.checkpoints.quantization import packing_plan, quantize_tensor
from bluejay.generation.decode_loop import DecodeLoop
from bluejay.generation.runner import Runner
from bluejay.generation.sampling import Sampler, SamplingParams
from bluejay.model.config import DecoderConfig
from bluejay.model.params import DecoderParams, map_named
from bluejay.model.presets import PRESETS, gptj_config
from bluejay.model.specs import decoder_specs
from small_models import drawn_params

VOCAB = 97
_SIZES = {
    "num_layers": 2,
    "embed_dim": 64,
    "num_heads": 4,
    "head_dim": 16,
    "feed_forward_dim": 96,
    "vocab_size": VOCAB,
    "context_length": 512,
}


def _small(name: str, **changes: Any) -> DecoderConfig:
    config = PRESETS[name]
    if config.position.kind != "learned":
        changes["position"] = replace(config.position, rotary_dim=16)
    return replace(config, **_SIZES, **changes)


FAMILIES = {
    "gptj": replace(gptj_config(2, 64, 4, rotary_dim=8, vocab_size=VOCAB), context_length=512),
    "neox": _small("pythia-70m", num_kv_heads=4),
    "gpt2": _small("gpt2", num_kv_heads=4),
    "llama": _small("smollm2-135m-instruct", num_kv_heads=2),
    # Wide enough for XLA to norm several rows in another way than one.
    "llama-576": replace(
        PRESETS["smollm2-135m-instruct"], num_layers=1, vocab_size=VOCAB, context_length=512
    ),
}


@cache
def params_of(family: str, bits: int = 32) -> DecoderParams:
    """Drawn parameters; of 8 or 4 bits as `bluejay quantize` rounds them."""
    config = FAMILIES[family]
    drawn = drawn_params(config)
    if bits == 32:
        return drawn
    specs: dict[str, Any] = {}
    map_named(lambda name, spec: specs.setdefault(name, spec), decoder_specs(config))
    plan = packing_plan(config, bits=bits, has_offsets=bits == 4)

    def quantized(name: str, leaf: jax.Array) -> Any:
        if name not in plan:
            return leaf
        packed = quantize_tensor(name, np.asarray(leaf), specs[name], plan[name])
        return jax.device_put(packed)

    return map_named(quantized, drawn)


@cache
def runner_of(family: str, bits: int = 32, cache_dtype: str = "float32") -> Runner:
    """One runner for each kind, so that its programs are compiled once."""
    return Runner(params_of(family, bits), config=FAMILIES[family], cache_dtype=cache_dtype)


def prompt_of(length: int, *, seed: int = 1) -> list[int]:
    return np.random.default_rng(seed).integers(0, VOCAB, length).tolist()


def loop_of(
    runner: Runner,
    prompt: list[int],
    sampling: SamplingParams,
    *,
    max_tokens: int,
    stop_ids: frozenset[int] = frozenset(),
    alternatives: int = 0,
) -> DecodeLoop:
    """A loop of one row before its first choice."""
    allowed = np.ones(runner.config.vocab_size, np.bool_)
    allowed[3] = False
    sampler = Sampler(sampling, allowed=allowed, num_alternatives=alternatives)
    sampler.observe_prompt(prompt)
    return DecodeLoop(
        runner,
        [runner.start(prompt, reserve=max_tokens)],
        [sampler],
        stop_ids=[stop_ids],
        max_tokens=[max_tokens],
    )
