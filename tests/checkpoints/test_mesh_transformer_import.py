"""Original npz shards of any number become the very tensors of the Hugging Face export."""

from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from bluejay.checkpoints.convert import convert
from bluejay.checkpoints.model_files import open_model
from bluejay.model.decoder import forward
from bluejay.runs.loading import load_params
from checkpoints.make_mesh_transformer import write_checkpoint
from golden_files import load_case, write_hf_folder

CASE = "gptj-rotary-full-head"


def as_haiku(tensors: dict[str, np.ndarray], num_layers: int) -> dict[str, np.ndarray]:
    """The golden model under the original's names, matrices as (in, out)."""
    named = {
        "embedding/w": tensors["transformer.wte.weight"],
        "head/w": tensors["lm_head.weight"].T,
        "head/b": tensors["lm_head.bias"],
        "final_norm/scale": tensors["transformer.ln_f.weight"],
        "final_norm/offset": tensors["transformer.ln_f.bias"],
    }
    for i in range(num_layers):
        layer = f"transformer.h.{i}"
        for short in ("q", "k", "v", "out"):
            named[f"layer_{i}/{short}/w"] = tensors[f"{layer}.attn.{short}_proj.weight"].T
        for short in ("fc_in", "fc_out"):
            named[f"layer_{i}/{short}/w"] = tensors[f"{layer}.mlp.{short}.weight"].T
            named[f"layer_{i}/{short}/b"] = tensors[f"{layer}.mlp.{short}.bias"]
        named[f"layer_{i}/norm/scale"] = tensors[f"{layer}.ln_1.weight"]
        named[f"layer_{i}/norm/offset"] = tensors[f"{layer}.ln_1.bias"]
    return {key: np.ascontiguousarray(value) for key, value in named.items()}


@pytest.mark.parametrize("is_full", [False, True], ids=["slim", "full"])
@pytest.mark.parametrize("num_shards", [1, 4, 8])
def test_any_number_of_shards_imports_to_the_same_tensors(
    num_shards: int, is_full: bool, tmp_path: Path
) -> None:
    case = load_case(CASE)
    hf = write_hf_folder(case, tmp_path / "hf")
    folder = write_checkpoint(
        tmp_path,
        as_haiku(case.tensors, 3),
        num_shards,
        embedding_bias=np.zeros(48, np.float32),
        is_full=is_full,
    )
    # Without a config the heads are taken to be GPT-J's own.
    (folder / "config.json").write_text((hf / "config.json").read_text())
    expected, found = open_model(hf), open_model(folder)
    assert found.family == "gptj"
    assert found.config == expected.config
    assert found.source.tensors.keys() == expected.source.tensors.keys()
    for name in expected.source.tensors:
        assert np.array_equal(found.source.read(name), expected.source.read(name)), name
    logits = forward(load_params(found), jnp.asarray(case.input_ids), config=found.config)
    np.testing.assert_allclose(logits, case.logits, rtol=0, atol=1e-4)


def test_the_embeddings_bias_is_in_its_rows_and_bfloat16_survives(tmp_path: Path) -> None:
    case = load_case(CASE)
    bias = (np.arange(48) / 16).astype(ml_dtypes.bfloat16)
    tensors = {
        key: value.astype(ml_dtypes.bfloat16) for key, value in as_haiku(case.tensors, 3).items()
    }
    folder = write_checkpoint(tmp_path / "npz", tensors, 8, embedding_bias=bias)
    hf = write_hf_folder(case, tmp_path / "hf")
    (folder / "config.json").write_text((hf / "config.json").read_text())
    report = convert(folder, tmp_path / "out", to="hf", dtype="bfloat16")
    assert report.dtypes == {"bfloat16": report.num_tensors}
    out = open_model(tmp_path / "out")
    expected = open_model(folder)
    for name in expected.source.tensors:
        before = expected.source.read(name).astype(ml_dtypes.bfloat16)
        assert np.array_equal(out.source.read(name), before), name
