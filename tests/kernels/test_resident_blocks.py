"""Blocks that the kernels keep by number: the same bits, and no way to read what is gone."""

import gc
import random
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluejay.generation.runner import Runner
from bluejay.kernels.decoding import ResidentBlocks, native_decoding
from bluejay.kernels.library import Library
from bluejay.model.cache import Cache, empty_cache
from bluejay.model.cached_block import keep_params
from bluejay.model.config import DecoderConfig
from bluejay.model.decoder import extend
from bluejay.model.params import DecoderParams
from bluejay.model.presets import gptj_config
from small_models import drawn_params
from speculation_models import FAMILIES, params_of

CONFIG = FAMILIES["gptj"]
# JAX raises the one where it computes at once, the other where it computes later.
REFUSED = (ValueError, jax.errors.JaxRuntimeError)
IDS = jnp.asarray([[5, 1, 40], [2, 7, 66]], jnp.int32)


def extend_natively(*arguments: Any, config: DecoderConfig) -> Any:
    with native_decoding():
        return extend(*arguments, config=config)


PROGRAM = jax.jit(extend_natively, static_argnames="config")


def run(
    params: DecoderParams, *, config: DecoderConfig = CONFIG, cache_dtype: str = "float32"
) -> tuple[np.ndarray, Cache]:
    cache = empty_cache(config, batch=2, capacity=128, dtype=cache_dtype)
    x, cache = PROGRAM(params, IDS, jnp.asarray([0, 9], jnp.int32), cache, config=config)
    return np.asarray(x), cache


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("bits", "cache_dtype"), [(32, "float32"), (8, "float16"), (4, "int8")])
def test_kept_blocks_have_the_bits_of_arguments(
    native: Library, family: str, bits: int, cache_dtype: str
) -> None:
    config, params = FAMILIES[family], params_of(family, bits)
    kept = keep_params(params, config=config)
    assert len(jax.tree.leaves(kept.blocks)) == 1
    found = run(kept, config=config, cache_dtype=cache_dtype)
    expected = run(params, config=config, cache_dtype=cache_dtype)
    for one, other in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_blocks_whose_numbers_are_gone_are_refused(native: Library) -> None:
    kept = keep_params(drawn_params(CONFIG, seed=4), config=CONFIG)
    assert isinstance(kept.blocks, ResidentBlocks)
    noted = ResidentBlocks(numbers=jnp.array(np.array(kept.blocks.numbers)))
    run(replace(kept, blocks=noted))
    del kept
    gc.collect()
    with pytest.raises(REFUSED, match="parameters are gone"):
        run(replace(params_of("gptj"), blocks=noted))


def test_forgetting_draws_no_random_numbers(native: Library) -> None:
    """It comes from the garbage collector, in the middle of what somebody else draws."""
    kept = keep_params(params_of("gptj"), config=CONFIG)
    assert isinstance(kept.blocks, ResidentBlocks)
    [number, *_] = np.array(kept.blocks.numbers).tolist()
    before = random.getstate()
    del kept
    gc.collect()
    assert random.getstate() == before
    blocks = ResidentBlocks(numbers=jnp.asarray([number] * 2, jnp.int32))
    with pytest.raises(REFUSED, match="parameters are gone"):
        run(replace(params_of("gptj"), blocks=blocks))


def test_what_waits_to_run_keeps_its_blocks(native: Library) -> None:
    """JAX computes later: the runner may be gone by then, and so may its parameters."""
    expected = np.asarray(Runner(params_of("gptj"), config=CONFIG).start([1, 2, 3]).logits)
    # Nobody else holds these parameters.
    waiting = [
        Runner(drawn_params(CONFIG), config=CONFIG).start([1, 2, 3]).logits for _ in range(20)
    ]
    gc.collect()
    for found in waiting:
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("numbers", [[], [2**31 - 1] * 3, [-1] * 3, [0] * 3])
def test_numbers_that_were_never_given_are_refused(native: Library, numbers: list[int]) -> None:
    blocks = ResidentBlocks(numbers=jnp.asarray(numbers, jnp.int32))
    forged = replace(params_of("gptj"), blocks=blocks)
    with pytest.raises(REFUSED, match=r"are gone|no number for this layer"):
        run(forged)


def test_blocks_of_another_width_are_refused(native: Library) -> None:
    wider = gptj_config(2, 128, 4, rotary_dim=16, vocab_size=97)
    kept = keep_params(drawn_params(wider), config=wider)
    mixed = replace(params_of("gptj"), blocks=kept.blocks)
    with pytest.raises(REFUSED, match="do not fit together"):
        run(mixed)


def test_a_runner_for_more_rows_has_the_same_blocks(native: Library) -> None:
    runner = Runner(params_of("gptj"), config=CONFIG)
    expected = np.asarray(runner.start([1, 2, 3]).logits)
    wider = runner.with_rows(16)
    assert wider.operands is runner.operands
    np.testing.assert_array_equal(wider.start([1, 2, 3]).logits, expected)


def test_a_runner_that_gets_other_parameters_runs_them(native: Library) -> None:
    """As the samples of a training run do, between two steps."""
    runner = Runner(drawn_params(CONFIG), config=CONFIG)
    other = drawn_params(CONFIG, seed=9)
    before = np.asarray(runner.start([1, 2, 3]).logits)
    assert isinstance(runner.operands.blocks, ResidentBlocks)
    runner.params = other
    after = np.asarray(runner.start([1, 2, 3]).logits)
    fresh = np.asarray(Runner(other, config=CONFIG).start([1, 2, 3]).logits)
    np.testing.assert_array_equal(after, fresh)
    assert np.abs(after - before).max() > 0.1
