"""Shards of the original code, written from the specification, come back as the same tensors."""

import shutil
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray

from bluejay.checkpoints.mesh_transformer import MeshTransformerFolder
from bluejay.checkpoints.opening import open_tensors
from checkpoints.make_mesh_transformer import random_tensors, write_checkpoint
from checkpoints.refusals import refused

BFLOAT16 = ml_dtypes.bfloat16
BIAS: NDArray[Any] = (np.arange(16) / 8 - 1).astype(np.float32)


def write(folder: Path, *, num_shards: int, dtype: Any = BFLOAT16, is_full: bool = False) -> Any:
    tensors = random_tensors(layers=11, width=16, vocabulary=24, dtype=dtype)
    bias = BIAS.astype(dtype)
    path = write_checkpoint(
        folder, tensors, num_shards, embedding_bias=bias, is_full=is_full, step=400
    )
    return path, tensors


@pytest.mark.parametrize(
    ("num_shards", "dtype", "is_full"),
    [
        (1, BFLOAT16, False),
        (4, BFLOAT16, False),
        (8, BFLOAT16, False),
        (2, np.float16, False),
        (1, np.float32, True),
        (4, BFLOAT16, True),
        (8, np.float32, True),
    ],
)
def test_any_number_of_shards_gives_the_same_tensors(
    tmp_path: Path, num_shards: int, dtype: Any, is_full: bool
) -> None:
    path, expected = write(tmp_path, num_shards=num_shards, dtype=dtype, is_full=is_full)
    source = open_tensors(tmp_path)
    assert isinstance(source, MeshTransformerFolder)
    assert source.folder == path
    assert (source.num_shards, source.step) == (num_shards, 400)
    assert source.num_leaves == 117 + (2 * 116 + 2) * is_full
    assert set(source.tensors) == set(expected)
    for name, whole in expected.items():
        info, found = source.tensors[name], source.read(name)
        is_sum = name == "embedding/w" or name.endswith("fc_out/b")
        assert found.dtype == info.dtype == (np.float32 if is_sum else dtype), name
        assert found.shape == info.shape == whole.shape
        assert info.num_bytes == found.nbytes
        np.testing.assert_array_equal(found.astype(np.float32), whole.astype(np.float32), name)
        assert found.flags.c_contiguous
    source.close()


def test_layers_are_numbered_as_text_sorts(tmp_path: Path) -> None:
    """A reader that took leaves in the order 0, 1, 2, ... would give layer 10's weights to 2."""
    path, expected = write(tmp_path, num_shards=1)
    source = MeshTransformerFolder(path)
    second_layer_on_disk = source.read_leaf(0, 2 + 2 * 10)
    np.testing.assert_array_equal(second_layer_on_disk, expected["layer_10/q/w"])
    assert source.leaf(2 + 2 * 10).shape == (16, 16)


def test_shard_0_alone_gives_the_norms(tmp_path: Path) -> None:
    path, _ = write(tmp_path, num_shards=4)
    source = MeshTransformerFolder(path)
    last_scale = source.num_leaves - 2
    assert (source.read_leaf(3, last_scale).astype(np.float32) == 99).all()
    assert not (source.read("final_norm/scale").astype(np.float32) == 99).any()


@pytest.mark.parametrize("missing", ["shard_1", "shard_0", "shard_1/7.npz", "shard_0/15.npz"])
def test_missing_parts_are_refused(tmp_path: Path, missing: str) -> None:
    path, _ = write(tmp_path, num_shards=4)
    lost = path / missing
    shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
    sentence = refused(MeshTransformerFolder, path)
    # Without its last file a shard is only shorter than the others.
    assert "missing" in sentence or "other shapes" in sentence or "not those" in sentence


def test_too_few_shards_are_refused(tmp_path: Path) -> None:
    path, _ = write(tmp_path, num_shards=4)
    shutil.rmtree(path / "shard_3")
    assert "not those of a GPT-J" in refused(MeshTransformerFolder, path)


def test_another_model_of_the_original_code_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "shard_0"
    folder.mkdir()
    np.savez(folder / "0.npz", np.zeros((4, 4)), np.zeros(4), np.array(1))
    assert "its 3 arrays are not those of a GPT-J" in refused(open_tensors, tmp_path)
    np.savez(folder / "0.npz")
    assert "its 0 arrays" in refused(open_tensors, tmp_path)
    np.savez(folder / "0.npz", weight=np.zeros(4))
    assert "arrays are named" in refused(open_tensors, tmp_path)


def test_links_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    path, _ = write(tmp_path / "real", num_shards=2)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "shard_0").symlink_to(path / "shard_0")
    assert "not a folder of its own" in refused(open_tensors, linked)
    (path / "shard_0" / "3.npz").unlink()
    (path / "shard_0" / "3.npz").symlink_to(path / "shard_1" / "3.npz")
    assert "link that leads out" in refused(open_tensors, path)


def test_several_steps_need_a_choice(tmp_path: Path) -> None:
    path, _ = write(tmp_path, num_shards=1)
    shutil.copytree(path, tmp_path / "step_500")
    assert "several models (step_400, step_500)" in refused(open_tensors, tmp_path)


def test_unknown_names_are_refused(tmp_path: Path) -> None:
    path, _ = write(tmp_path, num_shards=1)
    source = MeshTransformerFolder(path)
    for name in ("embedding/b", "layer_11/q/w"):
        assert f"no tensor named '{name}'" in refused(lambda _, n=name: source.read(n), path)
