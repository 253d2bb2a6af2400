"""Safetensors against the published writer, and against everybody who means harm."""

import json
import os
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from bluejay.checkpoints.opening import open_tensors
from bluejay.checkpoints.safetensors_file import MAX_HEADER_BYTES, SafetensorsFile
from bluejay.core.errors import CheckpointError
from checkpoints.refusals import refused

ARRAYS = {
    "a.float32": np.arange(12, dtype=np.float32).reshape(3, 4),
    "b.bfloat16": np.linspace(-3, 3, 10).astype(ml_dtypes.bfloat16).reshape(2, 5),
    "c.float16": np.float16([1.5, -2.25, 65504]),
    "d.int64": np.array([[-(2**62), 7]]),
    "e.bool": np.array([True, False, True]),
    "f.scalar": np.array(-1e9, np.float32),
    "g.empty": np.zeros((0, 4), np.float32),
    "h.uint8": np.arange(250, 256, dtype=np.uint8),
    "../../etc/passwd": np.ones(1, np.float64),
}


def with_header(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def one(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def test_reads_what_the_published_library_writes(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file(ARRAYS, path, metadata={"format": "pt"})
    file = SafetensorsFile(path)
    assert file.metadata == {"format": "pt"}
    assert set(file.tensors) == set(ARRAYS)
    for name, expected in ARRAYS.items():
        found, info = file.read(name), file.tensors[name]
        assert found.dtype == info.dtype == expected.dtype
        assert found.shape == info.shape == expected.shape
        assert info.num_bytes == expected.nbytes
        np.testing.assert_array_equal(found, expected)
        assert found.flags.c_contiguous
        assert found.flags.aligned
    assert file.tensors["b.bfloat16"].stored == "BF16"
    file.close()


def test_large_tensors_are_read_only_views_that_outlive_the_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"w": np.arange(1024, dtype=np.float32)}, path)
    file = SafetensorsFile(path)
    first, second = file.read("w"), file.read("w")
    assert np.shares_memory(first, second)
    assert not first.flags.writeable
    file.close()
    assert first[1023] == 1023  # the mapping goes with the last view, not with `close`


def test_a_name_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"w": np.zeros(2)}, path)
    file = SafetensorsFile(path)
    assert "no tensor named 'lm_head\\n'" in refused(lambda _: file.read("lm_head\n"), path)


HOSTILE = {
    "nothing but a length": (b"\x02\0\0\0\0\0\0\0", "too few"),
    "length beyond the limit": (with_header({}, length=2**62), "header of"),
    "length beyond the file": (with_header({}, b"x" * 9, length=4096), "cut short"),
    "not an object": (with_header(b"[1, 2]"), "start with"),
    "not JSON": (with_header(b"{]   "), "cannot be read"),
    "not UTF-8": (with_header(b'{"\xff\xfe": 1}'), "cannot be read"),
    "nested deeply": (with_header(b'{"a":' * 50_000), "JSON"),
    "an integer of 5000 digits": (with_header(b'{"a":' + b"9" * 5000 + b"}"), "cannot be read"),
    "a key twice": (
        with_header(b'{"w":{"dtype":"U8","shape":[],"data_offsets":[0,1]},"w":{}}', b"x"),
        "'w' appears twice",
    ),
    "a field twice": (with_header(b'{"w":{"dtype":"U8","dtype":"I8"}}', b"x"), "twice"),
    "an unknown dtype": (with_header(one("F128"), bytes(8)), "dtype 'F128'"),
    "a dtype that is a list": (with_header(one([1]), bytes(8)), "dtype list"),
    "a field missing": (with_header({"w": {"dtype": "F32", "shape": [2]}}, bytes(8)), "exactly"),
    "a field too many": (with_header({"w": one()["w"] | {"x": 1}}, bytes(8)), "exactly"),
    "an entry that is a number": (with_header({"w": 3}), "exactly"),
    "a negative size": (with_header(one(shape=(-2,)), bytes(8)), "shape"),
    "a fractional size": (with_header(one(shape=(2.0,)), bytes(8)), "shape"),
    "a size that is true": (with_header(one(shape=(True, 2)), bytes(8)), "shape"),
    "a size of 2**80": (with_header(one(shape=(2**80,)), bytes(8)), "shape"),
    "sizes whose product overflows": (with_header(one(shape=(2**40, 2**40)), bytes(8)), "shape"),
    "an empty tensor of 2**62 columns": (
        with_header(one(shape=(0, 2**62), offsets=(0, 0))),
        "shape",
    ),
    "a thousand dimensions": (with_header(one(shape=[1] * 1000), bytes(4)), "shape"),
    "a shape that is a string": (with_header(one(shape="22"), bytes(8)), "shape"),
    "offsets backwards": (with_header(one(offsets=(8, 0)), bytes(8)), "range"),
    "three offsets": (with_header(one(offsets=(0, 8, 9)), bytes(8)), "range"),
    "offsets past the end": (with_header(one(shape=(200,), offsets=(0, 800)), bytes(8)), "short"),
    "shape and size that differ": (with_header(one(shape=(3,)), bytes(8)), "does not fill"),
    "tensors that overlap": (
        with_header(one() | {"v": one(shape=(1,), offsets=(4, 8))["w"]}, bytes(8)),
        "overlaps",
    ),
    "a gap between tensors": (
        with_header(one() | {"v": one(shape=(1,), offsets=(12, 16))["w"]}, bytes(16)),
        "gap",
    ),
    "a gap before the first": (with_header(one(offsets=(4, 12)), bytes(12)), "gap"),
    "cut by one byte": (with_header(one(), bytes(7)), "cut short"),
    "one byte too many": (with_header(one(), bytes(9)), "1 extra bytes"),
    "metadata that is no object": (with_header({"__metadata__": [1]}), "__metadata__"),
    "metadata of numbers": (with_header({"__metadata__": {"a": 1}}), "__metadata__"),
    "a name with an escape sequence": (
        with_header({"\x1b[2J": one()["w"]}, bytes(8)),
        "named '\\x1b[2J'",
    ),
    "a name without characters": (with_header({"": one()["w"]}, bytes(8)), "named ''"),
    "a pickle": (b"\x80\x04cos\nsystem\n(S'touch pwned'\ntR.", "pickle"),
    "a text file": (b"Wake up, Neo. The Matrix has you.", "not a safetensors file"),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_hostile_files_are_refused_in_one_sentence(tmp_path: Path, attack: str) -> None:
    content, reason = HOSTILE[attack]
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert reason in refused(SafetensorsFile, path)
    assert reason in refused(open_tensors, path)
    assert reason in refused(open_tensors, tmp_path)


def test_a_header_of_many_empty_tensors_is_refused(tmp_path: Path) -> None:
    entry = b'"%06d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(entry % i for i in range(100_010)) + b"}"
    assert len(header) < MAX_HEADER_BYTES
    path = tmp_path / "many.safetensors"
    path.write_bytes(with_header(header))
    assert "100,011 tensors, more than the 100,000 allowed" in refused(SafetensorsFile, path)
    path.write_bytes(with_header(b" " * (MAX_HEADER_BYTES + 1)))
    assert "8,388,609 bytes" in refused(SafetensorsFile, path)


@pytest.mark.parametrize("kind", ["folder", "fifo", "device", "missing", "empty", "unreadable"])
def test_what_is_not_a_regular_file_is_refused_without_blocking(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "model.safetensors"
    reason = {"folder": "folder", "fifo": "named pipe", "device": "character device"}
    match kind:
        case "folder":
            path.mkdir()
        case "fifo":
            os.mkfifo(path)
        case "device":
            path = Path("/dev/zero")
        case "empty":
            path.touch()
        case "unreadable":
            path = tmp_path / ("x" * 300)
    reason |= {"missing": "No such file", "empty": "empty", "unreadable": "too long"}
    assert reason[kind] in refused(SafetensorsFile, path)
    if kind != "folder":
        assert reason[kind] in refused(open_tensors, path)


def test_a_path_with_a_null_or_a_line_break_gives_one_line() -> None:
    assert "not a possible file name" in refused(open_tensors, Path("a\0b"))
    assert "a\\nb" in refused(open_tensors, Path("a\nb"))


@given(st.binary(max_size=300))
def test_any_bytes_are_refused_or_read(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.safetensors"
    path.write_bytes(data)
    try:
        file = SafetensorsFile(path)
    except CheckpointError:
        return
    assert sum(file.read(name).nbytes for name in file.tensors) < len(data)


@given(position=st.integers(0, 10**6), value=st.integers(0, 255))
def test_a_changed_byte_never_escapes_the_file(
    tmp_path_factory: pytest.TempPathFactory, position: int, value: int
) -> None:
    data = bytearray(safetensors.numpy.save(ARRAYS))
    data[position % len(data)] = value
    path = tmp_path_factory.getbasetemp() / "changed.safetensors"
    path.write_bytes(data)
    try:
        file = SafetensorsFile(path)
    except CheckpointError:
        return
    assert sum(file.read(name).nbytes for name in file.tensors) < len(data)
