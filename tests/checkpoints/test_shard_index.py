"""Names in `weight_map` cannot lead anywhere but to files of the model's own folder."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from bluejay.checkpoints.opening import open_tensors
from bluejay.checkpoints.safetensors_file import open_safetensors_folder
from checkpoints.refusals import refused

INDEX = "model.safetensors.index.json"
FIRST, SECOND = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def save(path: Path, **tensors: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    safetensors.numpy.save_file({n: np.full(4, v, np.float32) for n, v in tensors.items()}, path)


def write_index(folder: Path, weight_map: object) -> None:
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    save(folder / FIRST, a=1, b=2)
    save(folder / SECOND, c=3)
    write_index(folder, {"a": FIRST, "b": FIRST, "c": SECOND})
    return folder


def test_shards_are_one_source(folder: Path) -> None:
    for path in (folder, folder / INDEX):
        source = open_tensors(path)
        assert sorted(source.tensors) == ["a", "b", "c"]
        np.testing.assert_array_equal(source.read("c"), [3, 3, 3, 3])
        assert "no tensor named 'd'" in refused(lambda _, s=source: s.read("d"), path)
        source.close()


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors",
        "../model/" + SECOND,
        "sub/" + SECOND,
        "..\\secret.safetensors",
        "C:secret.safetensors",
        "./" + SECOND,
        SECOND + "/",
        "model.safetensors/",
        "..",
        "",
        "a\0.safetensors",
        "\x1b[2J.safetensors",
        "config.json",
    ],
)
def test_shard_names_with_a_path_are_refused(folder: Path, shard: str) -> None:
    save(folder.parent / "secret.safetensors", c=3)
    save(folder / "sub" / SECOND, c=3)
    write_index(folder, {"a": FIRST, "b": FIRST, "c": shard})
    assert "is not a plain *.safetensors file name" in refused(open_safetensors_folder, folder)


def test_absolute_shard_names_are_refused(folder: Path) -> None:
    write_index(folder, {"a": FIRST, "b": FIRST, "c": str(folder / SECOND)})
    assert "is not a plain" in refused(open_safetensors_folder, folder)


@pytest.mark.parametrize("kind", ["link out", "link to link", "link in a circle", "fifo", "folder"])
def test_shards_that_are_not_files_of_the_folder_are_refused(folder: Path, kind: str) -> None:
    secret = folder.parent / "secret.safetensors"
    save(secret, c=3)
    shard = folder / SECOND
    shard.unlink()
    match kind:
        case "link out":
            shard.symlink_to(secret)
        case "link to link":
            (folder / "b.safetensors").symlink_to(secret)
            shard.symlink_to("b.safetensors")
        case "link in a circle":
            shard.symlink_to(SECOND)
        case "fifo":
            os.mkfifo(shard)
        case "folder":
            shard.mkdir()
    sentence = refused(open_safetensors_folder, folder)
    assert "link" in sentence if "link" in kind else "not a regular file" in sentence


def test_all_problems_are_reported_together(folder: Path) -> None:
    write_index(folder, {"a": FIRST, "b": SECOND, "x": SECOND})
    sentence = refused(open_safetensors_folder, folder)
    for problem in (
        f"'b' is not in {SECOND}",
        f"'x' is not in {SECOND}",
        f"'b' is in {FIRST}, listed for {SECOND}",
        f"'c' in {SECOND} is not listed",
    ):
        assert problem in sentence
    write_index(folder, {"a": "../a.safetensors", "b": "gone.safetensors", "c": "/c.safetensors"})
    sentence = refused(open_safetensors_folder, folder)
    assert "'../a.safetensors'" in sentence
    assert "gone.safetensors: cannot be opened (No such file or directory)" in sentence
    assert "'/c.safetensors'" in sentence


@pytest.mark.parametrize("weight_map", [None, {}, [], "x", {"a": 1}, {"a": [FIRST]}])
def test_a_weight_map_of_another_form_is_refused(folder: Path, weight_map: object) -> None:
    write_index(folder, weight_map)
    assert "weight_map" in refused(open_safetensors_folder, folder)


def test_the_same_tensor_in_two_shards_is_refused(folder: Path) -> None:
    save(folder / SECOND, c=3, a=9)
    assert "'a' is in" in refused(open_safetensors_folder, folder)


def test_thousands_of_shard_names_are_refused(folder: Path) -> None:
    write_index(folder, {f"t{i}": f"{i}.safetensors" for i in range(5000)})
    assert "5,000 shards" in refused(open_safetensors_folder, folder)


@pytest.mark.parametrize("is_sharded", [True, False])
def test_a_hub_cache_snapshot_is_read_through_its_links(tmp_path: Path, is_sharded: bool) -> None:
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    names = [FIRST, SECOND] if is_sharded else ["model.safetensors"]
    for i, name in enumerate(names):
        save(repository / "blobs" / f"hash{i}", **{f"t{i}": i})
        (snapshot / name).symlink_to(f"../../blobs/hash{i}")
    if is_sharded:
        write_index(repository / "blobs", {"t0": FIRST, "t1": SECOND})
        (snapshot / INDEX).symlink_to(f"../../blobs/{INDEX}")
    assert len(open_tensors(snapshot).tensors) == len(names)


@pytest.mark.parametrize("target", ["../../../secret.safetensors", "../../blobs/../x", "/dev/zero"])
def test_a_link_out_of_a_hub_cache_is_refused(tmp_path: Path, target: str) -> None:
    save(tmp_path / "secret.safetensors", c=3)
    repository = tmp_path / "models--owner--name"
    snapshot = repository / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    save(repository / "x", c=3)
    (repository / "blobs").mkdir()
    (snapshot / "model.safetensors").symlink_to(target)
    assert "leads out of the model's folder" in refused(open_tensors, snapshot)


def test_a_blob_that_was_never_downloaded_is_refused(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/hash")
    assert "missing; download the model again" in refused(open_tensors, snapshot)
