"""Pooled hidden states equal those of a pass over the whole text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluejay.core.errors import UsageError
from bluejay.generation.compile_count import num_compiled_here
from bluejay.generation.hidden_states import HiddenStates
from bluejay.generation.runner import Runner
from bluejay.model.decoder import final_norm, residual
from bluejay.model.params import DecoderParams
from bluejay.model.presets import gptj_config
from small_models import drawn_params

CONFIG = gptj_config(2, 64, 4, rotary_dim=8, vocab_size=320)
CONTEXT = 700


@pytest.fixture(scope="module")
def runner() -> Runner:
    return Runner(drawn_params(CONFIG), config=CONFIG)


@pytest.mark.parametrize("length", [1, 16, 37, 256, 345, 700])
def test_mean_and_last_are_those_of_one_pass(runner: Runner, length: int) -> None:
    @jax.jit
    def read(params: DecoderParams) -> jax.Array:
        x = residual(params, jnp.asarray([ids], jnp.int32), config=CONFIG)
        return final_norm(params, x, config=CONFIG)

    ids = np.random.default_rng(length).integers(0, 320, length).tolist()
    expected = np.asarray(read(runner.params))[0].astype(np.float64)
    states = HiddenStates(runner, context_length=CONTEXT)
    assert states.pooled(ids, pooling="last") == pytest.approx(expected[-1], abs=2e-5)
    assert states.pooled(ids, pooling="mean") == pytest.approx(expected.mean(axis=0), abs=2e-5)


def test_warm_up_compiles_all_that_texts_need(runner: Runner) -> None:
    states = HiddenStates(runner, context_length=CONTEXT)
    num_compiled_here()
    states.warm_up()
    known = num_compiled_here()
    assert known > 0
    for length in (1, 15, 64, 255, 257, 699):
        states.pooled([5] * length, pooling="mean")
    assert num_compiled_here() == known


def test_an_id_without_a_row_is_refused(runner: Runner) -> None:
    with pytest.raises(UsageError, match="Token id 320 is outside"):
        HiddenStates(runner, context_length=CONTEXT).pooled([320], pooling="mean")
