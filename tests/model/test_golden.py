"""Logits equal those of transformers, with every bias and norm scale drawn at random."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluejay.checkpoints.model_files import open_model
from bluejay.generation.runner import Runner
from bluejay.model.decoder import forward
from bluejay.model.params import BlockParams, DecoderParams
from bluejay.runs.loading import load_params
from golden_files import CASES, GoldenCase, load_case, write_hf_folder

# A wrong epsilon or a swapped bias hides in a looser bound.
TOLERANCE = 1e-4


@pytest.fixture(params=CASES, scope="module")
def case(request: pytest.FixtureRequest) -> GoldenCase:
    return load_case(request.param)


@pytest.mark.parametrize("older", [False, True], ids=["transformers-5", "transformers-4"])
def test_logits_equal_transformers(case: GoldenCase, older: bool, tmp_path: Path) -> None:
    files = open_model(write_hf_folder(case, tmp_path / "hf", older_config=older))
    run = jax.jit(forward, static_argnames="config")
    logits = run(load_params(files), jnp.asarray(case.input_ids), config=files.config)
    difference = np.abs(np.asarray(logits) - case.logits).max()
    scale = np.abs(case.logits).max()
    print(f"{case.name}: largest difference {difference:.1e} at a scale of {scale:.1f}")
    assert scale > 4
    assert difference <= TOLERANCE


def test_stacked_blocks_give_the_same_logits(case: GoldenCase, tmp_path: Path) -> None:
    files = open_model(write_hf_folder(case, tmp_path / "hf"))
    params = load_params(files)
    assert isinstance(params.blocks, tuple)
    stacked = DecoderParams(
        **{**vars(params), "blocks": jax.tree.map(lambda *x: jnp.stack(x), *params.blocks)}
    )
    assert isinstance(stacked.blocks, BlockParams)
    logits = forward(stacked, jnp.asarray(case.input_ids), config=files.config)
    np.testing.assert_allclose(logits, case.logits, rtol=0, atol=TOLERANCE)


def test_cached_logits_equal_transformers(case: GoldenCase, tmp_path: Path) -> None:
    files = open_model(write_hf_folder(case, tmp_path / "hf"))
    runner = Runner(load_params(files), config=files.config)
    for ids, expected in zip(case.input_ids, case.logits, strict=True):
        scores = runner.score(ids.tolist())
        np.testing.assert_allclose(scores, expected, rtol=0, atol=TOLERANCE)
