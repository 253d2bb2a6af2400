"""A block over its cache in native code against the equations in plain JAX."""

from dataclasses import replace
from functools import cache as cached
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluejay.kernels.decoding import native_decoding
from bluejay.kernels.library import Library
from bluejay.model.cache import empty_cache
from bluejay.model.config import DecoderConfig
from bluejay.model.decoder import extend
from bluejay.model.presets import PRESETS, gptj_config
from small_models import drawn_params

GPTJ = gptj_config(1, 96, 3, rotary_dim=16, vocab_size=67)
GROUPED = replace(
    PRESETS["smollm2-135m-instruct"],
    num_layers=1,
    embed_dim=72,
    num_heads=6,
    num_kv_heads=2,
    head_dim=20,
    feed_forward_dim=56,
    vocab_size=67,
    position=replace(PRESETS["smollm2-135m-instruct"].position, rotary_dim=20),
)
CONFIGS = {"gptj": GPTJ, "grouped": GROUPED}
# int8 codes may fall to different sides of a tie; the bound is one step of 127 of a row's largest.
TOLERANCE = {"float32": 2e-5, "float16": 2e-3, "int8": 2e-2}


def extend_natively(*arguments: Any, config: DecoderConfig) -> Any:
    with native_decoding():
        return extend(*arguments, config=config)


# One program each, whatever the instruction set: kernels are chosen when they run.
NATIVELY = jax.jit(extend_natively, static_argnames="config")
PLAINLY = jax.jit(extend, static_argnames="config")
params_of = cached(drawn_params)


def run(
    config: DecoderConfig, dtype: str, pieces: tuple[int, ...], *, natively: bool
) -> np.ndarray:
    """The residual rows of two sequences, fed in these pieces."""
    step = partial(NATIVELY if natively else PLAINLY, params_of(config))
    cache = empty_cache(config, batch=2, capacity=512, dtype=dtype)
    starts = jnp.asarray([0, 0], jnp.int32)
    ids = np.random.default_rng(3).integers(0, config.vocab_size, (2, sum(pieces)))
    rows, begin = [], 0
    for size in pieces:
        piece = jnp.asarray(ids[:, begin : begin + size], jnp.int32)
        x, cache = step(piece, starts, cache, config=config)
        rows.append(np.asarray(x))
        starts, begin = starts + size, begin + size
    return np.concatenate(rows, axis=1)


@cached
def expected_rows(name: str, dtype: str, pieces: tuple[int, ...]) -> np.ndarray:
    return run(CONFIGS[name], dtype, pieces, natively=False)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_plain_jax_on_every_cache(native: Library, name: str, dtype: str) -> None:
    """Prompts in large pieces, steps of one and of a few, beyond one chunk of 256 positions."""
    pieces = (256, 64, 16, 1, 3, 1)
    found = run(CONFIGS[name], dtype, pieces, natively=True)
    expected = expected_rows(name, dtype, pieces)
    scale = np.abs(expected).max()
    assert np.abs(found - expected).max() <= TOLERANCE[dtype] * scale


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_a_step_is_the_same_alone_and_among_several(native: Library, dtype: str) -> None:
    """Position by position or four at once, with one thread or three: the same bits."""
    found, before, singly = [], native.num_threads, (16, *[1] * 8)
    for threads, pieces in ((1, singly), (3, (16, 4, 4)), (3, singly)):
        native.set_num_threads(threads)
        found.append(run(GROUPED, dtype, pieces, natively=True).tobytes())
    native.set_num_threads(before)
    assert len(set(found)) == 1


def test_what_is_not_a_number_spoils_its_row_alone(native: Library) -> None:
    params = drawn_params(GPTJ)
    damaged = replace(params, embedding=params.embedding.at[5].set(jnp.nan))
    cache = empty_cache(GPTJ, batch=2, capacity=128)
    ids = jnp.asarray([[5, 1], [2, 1]], jnp.int32)
    x, _ = NATIVELY(damaged, ids, jnp.zeros(2, jnp.int32), cache, config=GPTJ)
    assert np.isnan(x[0]).all()
    assert np.isfinite(x[1]).all()


@pytest.mark.parametrize("start", [-1, 127, 2**31 - 1])
def test_a_position_outside_of_the_cache_is_an_error(native: Library, start: int) -> None:
    cache = empty_cache(GPTJ, batch=1, capacity=128)
    ids = jnp.zeros((1, 2), jnp.int32)
    with pytest.raises(jax.errors.JaxRuntimeError, match="outside of the cache"):
        NATIVELY(params_of(GPTJ), ids, jnp.asarray([start], jnp.int32), cache, config=GPTJ)
