"""Narrow caches, with native kernels and without, against whole sequences without a cache."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bluejay
from bluejay.checkpoints.locate import locate
from bluejay.core.errors import UsageError
from bluejay.generation import runner as runner_module
from bluejay.generation.runner import Runner
from bluejay.kernels.decoding import CACHE_DTYPES
from bluejay.model.decoder import forward
from bluejay.model.presets import gptj_config
from bluejay.runs.quantization import Quantization, quantize
from small_models import drawn_params

CONFIG = gptj_config(2, 64, 4, rotary_dim=8, vocab_size=331)
# Rounding of keys and values to 24, 11 and 8 bits, for logits that spread over several units.
LARGEST = {"float32": 2e-4, "float16": 5e-3, "int8": 0.1}


@pytest.fixture(params=["native", "reference"])
def is_native(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "reference":
        monkeypatch.setattr(runner_module, "cpu_library", lambda: None)
    return bool(request.param == "native")


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
def test_prompts_steps_and_groups(dtype: str, is_native: bool) -> None:
    """A prompt of two chunks, a cache that has to grow, a row alone and beside a shorter one."""
    runner = Runner(drawn_params(CONFIG), config=CONFIG, rows_per_call=2, cache_dtype=dtype)
    assert runner.is_native == is_native
    ids = np.random.default_rng(0).integers(0, CONFIG.vocab_size, 260).tolist()
    whole = jax.jit(partial(forward, config=CONFIG))
    exact = np.asarray(whole(runner.params, jnp.asarray([ids], jnp.int32)))[0]
    prefix, other = runner.start(ids[:70]), runner.start(ids[:9])
    assert {layer.key.dtype.name for layer in prefix.cache.layers} == {dtype}
    group = runner.group([runner.copy(prefix), other], reserve=2)
    group = runner.step_group(group, [ids[70], None])
    differences = []
    for place in range(70, 260):
        prefix = runner.step(prefix, ids[place])
        differences.append(np.abs(np.asarray(prefix.logits) - exact[place]).max())
        if place == 70:
            np.testing.assert_allclose(group.logits[0], prefix.logits, rtol=0, atol=1e-4)
    print(f"{dtype}: largest difference {max(differences):.1e}, spread {exact.std():.1f}")
    assert max(differences) < LARGEST[dtype]
    assert (max(differences) > LARGEST["float32"]) == (dtype != "float32")


def test_by_default_only_packed_weights_have_a_narrow_cache(tmp_path: Path) -> None:
    assert bluejay.load("bluejay-tiny").runner.cache_dtype == "float32"
    how = Quantization(bits=8, calibration=None, held_out=None)
    quantize(locate("bluejay-tiny"), tmp_path / "packed", how)
    assert bluejay.load(tmp_path / "packed").runner.cache_dtype == "float16"
    assert bluejay.load(tmp_path / "packed", dtype="float32").runner.cache_dtype == "float32"


def test_other_types_are_refused() -> None:
    with pytest.raises(UsageError, match="float32, float16, int8, not 'int4'"):
        bluejay.load("bluejay-tiny", cache_dtype="int4")
