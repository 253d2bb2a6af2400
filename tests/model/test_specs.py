"""One spec tree gives shapes, counts, masks and both initialisations, at full size."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluejay.model.config import DecoderConfig
from bluejay.model.decoder import forward
from bluejay.model.flops import forward_flops_per_token
from bluejay.model.params import named_leaves
from bluejay.model.presets import PRESETS, gptj_config, preset
from bluejay.model.specs import (
    abstract_params,
    decay_mask,
    decoder_specs,
    initialize,
    parameter_count,
)

# Published or derived counts of unique parameters. GPT-J: its README's 6,053,381,344 counts the
# norms and two biases once for each of eight cores. Pythia, GPT-2 and SmolLM2: their model cards.
COUNTS = {
    "gptj-6b": (285, 6_050_882_784),
    "pythia-70m": (76, 70_426_624),
    "pythia-160m": (148, 162_322_944),
    "pythia-410m": (292, 405_334_016),
    "pythia-1b": (196, 1_011_781_632),
    "pythia-1.4b": (292, 1_414_647_808),
    "pythia-2.8b": (388, 2_775_208_960),
    "pythia-6.9b": (388, 6_857_302_016),
    "pythia-12b": (436, 11_846_072_320),
    "gpt2": (148, 124_439_808),
    "gpt2-medium": (292, 354_823_168),
    "gpt2-large": (436, 774_030_080),
    "gpt2-xl": (580, 1_557_611_200),
    "smollm2-135m-instruct": (272, 134_515_008),
}


def published_tensors(config: DecoderConfig) -> int:
    """Query, key and value are one tensor where they are published fused."""
    names = named_leaves(decoder_specs(config))
    fused = 0
    if config.variant.attention_bias:  # GPT-NeoX and GPT-2: a fused matrix and a fused bias
        fused = 4 * config.num_layers
    return len(names) - fused


@pytest.mark.parametrize("name", COUNTS)
def test_tensor_and_parameter_counts_are_the_published_ones(name: str) -> None:
    config = preset(name)
    tensors, parameters = COUNTS[name]
    assert published_tensors(config) == tensors
    assert parameter_count(decoder_specs(config)) == parameters


@pytest.mark.parametrize(("name", "billions"), [("gpt3-175b", 175), ("mt-nlg-530b", 530)])
def test_the_giants_have_the_size_in_their_name(name: str, billions: int) -> None:
    assert round(parameter_count(decoder_specs(preset(name))) / 1e9) == billions


@pytest.mark.parametrize("name", PRESETS)
def test_eval_shape_of_every_preset(name: str) -> None:
    config = preset(name)
    params = abstract_params(decoder_specs(config), jnp.bfloat16)
    ids = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    logits = jax.eval_shape(lambda p, i: forward(p, i, config=config), params, ids)
    assert logits.shape == (2, 5, config.vocab_size)
    assert logits.dtype == jnp.float32


def test_forward_flops_agree_with_the_compiler_and_the_formula() -> None:
    """XLA counts what it compiled; the formula is 2N plus attention, without the embedding."""
    config = gptj_config(2, 256, 4, rotary_dim=16, vocab_size=1024)
    length = 64
    params = abstract_params(decoder_specs(config), jnp.float32)
    ids = jax.ShapeDtypeStruct((1, length), jnp.int32)
    run = jax.jit(lambda p, i: forward(p, i, config=config))
    counted = run.lower(params, ids).compile().cost_analysis()["flops"] / length
    # The compiled program multiplies the whole square of scores, masked half included.
    expected = forward_flops_per_token(config, visible_positions=length)
    assert counted == pytest.approx(expected, rel=0.02)
    gptj = preset("gptj-6b")
    weights = 6_050_882_784 - 50_400 * 4096  # no arithmetic in looking the embedding up
    assert forward_flops_per_token(gptj, visible_positions=0) == pytest.approx(
        2 * weights, rel=1e-3
    )


def test_decay_touches_matrices_and_embeddings_only() -> None:
    specs = decoder_specs(preset("gpt2"))
    mask = named_leaves(decay_mask(specs))
    for path, spec in named_leaves(specs).items():
        assert mask[path] == (not path.endswith(("bias", "scale"))), path
        assert len(spec.shape) == len(spec.axes)


def test_the_2021_recipe_has_the_originals_deviations() -> None:
    config = gptj_config(4, 256, 4, rotary_dim=16, vocab_size=2048)
    values = named_leaves(initialize(decoder_specs(config), jax.random.key(0)))
    expected = {
        "embedding": 2048**-0.5,
        "head": 1 / 16,
        "blocks.1.attention.query": 1 / 16,
        "blocks.1.attention.out": (2 / 4) / 16,
        "blocks.1.feed_forward.up": 1 / 16,
        # The embedding's width, not the fan-in of 1024.
        "blocks.1.feed_forward.down": (2 / 4) / 16,
    }
    for path, stddev in expected.items():
        found = np.asarray(values[path])
        assert found.std() == pytest.approx(stddev, rel=0.02), path
        assert np.abs(found).max() <= 2.0 * stddev / 0.8796 * 1.001, path
    assert np.all(np.asarray(values["blocks.0.attention_norm.scale"]) == 1)
    assert np.all(np.asarray(values["head_bias"]) == 0)


def test_the_hugging_face_recipe_is_normal_with_0_02() -> None:
    config = gptj_config(2, 256, 4, rotary_dim=16, vocab_size=2048)
    values = named_leaves(
        initialize(decoder_specs(config), jax.random.key(0), recipe="huggingface")
    )
    for path in ("embedding", "head", "blocks.0.feed_forward.down"):
        assert np.asarray(values[path]).std() == pytest.approx(0.02, rel=0.02)


def test_a_tensor_is_drawn_from_the_key_and_its_own_name() -> None:
    small = named_leaves(initialize(decoder_specs(preset("gptj-nano")), jax.random.key(3)))
    again = named_leaves(initialize(decoder_specs(preset("gptj-nano")), jax.random.key(3)))
    other = named_leaves(initialize(decoder_specs(preset("gptj-nano")), jax.random.key(4)))
    query = "blocks.0.attention.query"
    assert np.array_equal(small[query], again[query])
    assert not np.array_equal(small[query], other[query])
    assert not np.array_equal(small[query], small["blocks.1.attention.query"])


def test_the_loss_of_a_fresh_model_is_that_of_a_guess() -> None:
    config = gptj_config(2, 128, 4, rotary_dim=16, vocab_size=2048)
    params = initialize(decoder_specs(config), jax.random.key(0))
    ids = jax.random.randint(jax.random.key(1), (4, 64), 0, 2048, jnp.int32)
    scores = jax.nn.log_softmax(forward(params, ids, config=config))
    loss = -jnp.take_along_axis(scores[:, :-1], ids[:, 1:, None], axis=-1).mean()
    assert float(loss) == pytest.approx(math.log(2048), rel=0.1)
