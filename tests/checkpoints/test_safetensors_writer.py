"""The streaming writer, read back by the published library."""

import errno
import hashlib
import json
import resource
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from numpy.typing import NDArray

from bluejay.checkpoints import safetensors_writer
from bluejay.checkpoints.safetensors_file import SafetensorsFile, open_safetensors_folder
from bluejay.checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec
from bluejay.core.errors import DiskError, UsageError

ODD = {
    "three_bytes": np.arange(3, dtype=np.uint8),
    "norm": np.linspace(0, 1, 5, dtype=np.float32),
    "matrix": np.arange(128, dtype=np.float32).reshape(8, 16),
    "bf16": np.arange(6, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(2, 3),
    "half": np.ones((4, 8), np.float16),
    "scalar": np.array(7, np.int64),
    "nothing": np.zeros((3, 0), np.float32),
}


def specs(arrays: dict[str, NDArray[Any]]) -> list[TensorSpec]:
    return [TensorSpec(name=n, shape=a.shape, dtype=a.dtype) for n, a in arrays.items()]


def write_all(folder: Path, arrays: dict[str, NDArray[Any]], **options: Any) -> SafetensorsWriter:
    with SafetensorsWriter(folder, specs(arrays), **options) as writer:
        for name in writer.order:
            writer.write(name, arrays[name])
    return writer


def test_the_published_library_reads_what_we_write(tmp_path: Path) -> None:
    writer = write_all(tmp_path, ODD, metadata={"origin": "test"})
    path = tmp_path / "model.safetensors"
    found = safetensors.numpy.load_file(path)
    assert set(found) == set(ODD)
    for name, expected in ODD.items():
        assert found[name].dtype == expected.dtype
        np.testing.assert_array_equal(found[name], expected)
    with safetensors.safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt", "origin": "test"}
    (written,) = writer.written
    assert written.path == path
    assert written.num_bytes == writer.num_bytes == path.stat().st_size
    assert written.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_tensors_start_at_multiples_of_64_where_sizes_allow(tmp_path: Path) -> None:
    write_all(tmp_path, ODD)
    file = SafetensorsFile(tmp_path / "model.safetensors")
    for name, array in ODD.items():
        address = file.read(name).ctypes.data
        factor = min(64, array.nbytes & -array.nbytes) if array.nbytes else 1
        assert address % factor == 0, name
    assert all(file.read(name).ctypes.data % 64 == 0 for name in ("matrix", "half"))


def test_shards_have_the_published_names_and_index(tmp_path: Path) -> None:
    arrays = {f"layer.{i}": np.full((10, 10), i, np.float32) for i in range(5)}
    arrays["large"] = np.zeros(1000, np.float32)
    writer = write_all(tmp_path, arrays, max_shard_bytes=1000)
    names = [f"model-{i:05d}-of-00004.safetensors" for i in range(1, 5)]
    assert [w.path.name for w in writer.written] == [*names, "model.safetensors.index.json"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [*names, "model.safetensors.index.json"]
    for written in writer.written:
        assert hashlib.sha256(written.path.read_bytes()).hexdigest() == written.sha256
    index = json.loads((tmp_path / "model.safetensors.index.json").read_bytes())
    assert index["metadata"]["total_size"] == sum(a.nbytes for a in arrays.values())
    assert index["weight_map"]["large"] == names[3]
    source = open_safetensors_folder(tmp_path)
    for name, expected in arrays.items():
        np.testing.assert_array_equal(source.read(name), expected)


def test_rows_may_come_in_blocks_and_views_need_no_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors_writer, "_BLOCK_BYTES", 256)
    matrix = np.random.default_rng(0).standard_normal((37, 50)).astype(np.float32)
    transposed = np.ascontiguousarray(matrix.T)

    def blocks() -> Iterator[NDArray[Any]]:
        for start in range(0, 37, 8):
            yield matrix[start : start + 8]

    with SafetensorsWriter(tmp_path, specs({"blocks": matrix, "view": transposed})) as writer:
        for name in writer.order:
            writer.write(name, blocks() if name == "blocks" else matrix.T)
    found = safetensors.numpy.load_file(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(found["blocks"], matrix)
    np.testing.assert_array_equal(found["view"], transposed)


WRONG = {
    "shape": np.zeros((3, 2), np.float32),
    "dtype": np.zeros((2, 3), np.float64),
    "too few rows": [np.zeros((1, 3), np.float32)],
    "too many rows": [np.zeros((2, 3), np.float32)] * 2,
    "block width": [np.zeros((3, 2), np.float32)],
}


@pytest.mark.parametrize("what", WRONG)
def test_a_tensor_that_was_not_announced_so_leaves_nothing_behind(
    tmp_path: Path, what: str
) -> None:
    spec = TensorSpec(name="w", shape=(2, 3), dtype=np.dtype(np.float32))
    with (
        pytest.raises(UsageError, match="'w' was announced as float32 of shape"),
        SafetensorsWriter(tmp_path, [spec]) as writer,
    ):
        writer.write("w", WRONG[what])
    assert list(tmp_path.iterdir()) == []


def test_order_and_completeness_are_enforced(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="'half' was written where 'matrix' is due"),
        SafetensorsWriter(tmp_path, specs(ODD)) as writer,
    ):
        writer.write("half", ODD["half"])
    with (
        pytest.raises(UsageError, match="'half' was announced and never written"),
        SafetensorsWriter(tmp_path, specs(ODD)) as writer,
    ):
        writer.write("matrix", ODD["matrix"])
    with pytest.raises(UsageError, match="'norm' is announced twice"):
        SafetensorsWriter(tmp_path, [*specs(ODD), *specs({"norm": ODD["norm"]})])
    with pytest.raises(UsageError, match="no dtype"):
        SafetensorsWriter(tmp_path, [TensorSpec(name="o", shape=(1,), dtype=np.dtype("O"))])
    assert list(tmp_path.iterdir()) == []


def test_an_error_keeps_the_older_file(tmp_path: Path) -> None:
    write_all(tmp_path, {"w": np.zeros(4, np.float32)})
    before = (tmp_path / "model.safetensors").read_bytes()

    def blocks() -> Iterator[NDArray[Any]]:
        yield np.ones(2, np.float32)
        raise KeyboardInterrupt

    with (
        pytest.raises(KeyboardInterrupt),
        SafetensorsWriter(tmp_path, specs({"w": np.ones(4, np.float32)})) as writer,
    ):
        writer.write("w", blocks())
    assert (tmp_path / "model.safetensors").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def test_too_little_space_is_said_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = SimpleNamespace(total=1, used=1, free=100)
    monkeypatch.setattr(safetensors_writer.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DiskError, match=r"[0-9,]+ bytes are needed and 100 are free"):
        write_all(tmp_path, ODD)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_on_the_way_is_a_disk_error(tmp_path: Path) -> None:
    """The system itself refuses the write: the limit on file sizes gives EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    arrays = {"w": np.zeros(200_000, np.float32)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(DiskError) as caught:
            write_all(tmp_path, arrays)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "model.safetensors: the disk is full" in str(caught.value)
    assert "800,1" in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskError, match="cannot be written"):
        write_all(tmp_path / "file" / "folder", ODD)
