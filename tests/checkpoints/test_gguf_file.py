"""GGUF against the published writer, reader and dequantizer, and against forged heads."""

import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
import pytest
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from bluejay.checkpoints import gguf_types
from bluejay.checkpoints.gguf_file import GgufFile
from bluejay.checkpoints.gguf_types import STORED_TYPES
from bluejay.checkpoints.opening import open_tensors
from bluejay.core.errors import CheckpointError
from checkpoints.refusals import refused

PLAIN = {
    "f32": np.arange(12, dtype=np.float32).reshape(3, 4),
    "f16": np.float16([[1.5, -2.25]]),
    "f64": np.arange(6.0).reshape(1, 2, 3),
    "i8": np.arange(-3, 3, dtype=np.int8),
    "i32": np.arange(4, dtype=np.int32),
}


def write(path: Path, add: Callable[[gguf.GGUFWriter], None]) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    add(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_reads_what_the_published_writer_writes(tmp_path: Path) -> None:
    bf16 = np.linspace(-2, 2, 6).astype(ml_dtypes.bfloat16).reshape(2, 3)

    def add(writer: gguf.GGUFWriter) -> None:
        for name, array in PLAIN.items():
            writer.add_tensor(name, array)
        bits, kind = bf16.view(np.uint8), GGMLQuantizationType.BF16
        writer.add_tensor("bf16", bits, raw_shape=(2, 6), raw_dtype=kind)

    file = GgufFile(write(tmp_path / "a.gguf", add))
    assert set(file.tensors) == {*PLAIN, "bf16"}
    for name, expected in (PLAIN | {"bf16": bf16}).items():
        found, info = file.read(name), file.tensors[name]
        assert found.dtype == info.dtype == expected.dtype
        assert found.shape == info.shape == expected.shape
        assert info.stored == name.upper()
        np.testing.assert_array_equal(found, expected)
        assert not found.flags.writeable
    assert "no tensor named 'x'" in refused(lambda _: file.read("x"), tmp_path)
    file.close()
    assert file.metadata["general.architecture"] == "llama"


QUANTIZED = sorted(t.name for t in STORED_TYPES.values() if t.is_quantized)


@pytest.mark.parametrize("name", QUANTIZED)
def test_blocks_read_as_the_published_dequantizer_has_them(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_types, "_CHUNK_ELEMENTS", 1024)  # so that there are several chunks
    kind = GGMLQuantizationType[name]
    _, block_bytes = GGML_QUANT_SIZES[kind]
    # Without the two highest bits every float16 in a block is finite.
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 64, (7, 3 * block_bytes)).astype(np.uint8)
    path = write(tmp_path / "a.gguf", lambda w: w.add_tensor("w", rows, raw_dtype=kind))
    file = GgufFile(path)
    (theirs,) = gguf.GGUFReader(path).tensors
    assert file.tensors["w"].stored == name
    assert file.tensors["w"].shape == tuple(theirs.shape[::-1])
    expected = gguf.quants.dequantize(theirs.data, kind)
    found = file.read("w")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)
    assert found.any()


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q8_0"])
def test_quantized_matrices_are_near_their_originals(tmp_path: Path, name: str) -> None:
    matrix = np.random.default_rng(1).standard_normal((5, 64)).astype(np.float32)
    kind = GGMLQuantizationType[name]
    stored = gguf.quants.quantize(matrix, kind)
    path = write(tmp_path / "a.gguf", lambda w: w.add_tensor("w", stored, raw_dtype=kind))
    found = GgufFile(path).read("w")
    assert np.abs(found - matrix).max() < (0.02 if name == "Q8_0" else 0.3)


def test_block_sizes_are_those_of_the_published_package() -> None:
    for number, stored in STORED_TYPES.items():
        kind = GGMLQuantizationType(number)
        assert (stored.name, (stored.block_elements, stored.block_bytes)) == (
            kind.name,
            GGML_QUANT_SIZES[kind],
        )


def test_metadata_of_every_kind(tmp_path: Path) -> None:
    def add(writer: gguf.GGUFWriter) -> None:
        writer.add_uint8("u8", 255)
        writer.add_int64("i64", -(2**40))
        writer.add_float32("f32", 0.5)
        writer.add_bool("yes", True)
        writer.add_string("text", "naïve ☕")
        writer.add_array("tokens", ["a", "", "Ġhow", "☕"])
        writer.add_array("types", [1, 2, 3])
        writer.add_array("scores", [0.5, -1.5])
        writer.add_array("flags", [True, False])

    metadata = GgufFile(write(tmp_path / "a.gguf", add)).metadata
    assert {k: metadata[k] for k in ("u8", "i64", "f32", "yes", "text", "tokens")} == {
        "u8": 255,
        "i64": -(2**40),
        "f32": 0.5,
        "yes": True,
        "text": "naïve ☕",
        "tokens": ["a", "", "Ġhow", "☕"],
    }
    arrays: list[Any] = [metadata[key] for key in ("types", "scores", "flags")]
    assert [array.tolist() for array in arrays] == [[1, 2, 3], [0.5, -1.5], [True, False]]
    assert "tokens" in metadata
    assert "missing" not in metadata
    assert len(metadata) == 10


def test_a_real_model_reads_as_the_published_reader_has_it(smollm2_gguf: Path) -> None:
    file, theirs = open_tensors(smollm2_gguf), gguf.GGUFReader(smollm2_gguf)
    assert [(i.name, i.shape, i.stored) for i in file.tensors.values()] == [
        (t.name, tuple(t.shape[::-1]), t.tensor_type.name) for t in theirs.tensors
    ]
    for tensor in theirs.tensors[:12]:
        expected = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        np.testing.assert_array_equal(file.read(tensor.name), expected.reshape(tensor.shape[::-1]))


def test_a_vocabulary_of_150_000_opens_at_once(tmp_path: Path) -> None:
    """Timed in a process of its own, because the tests check every call and so slow it down."""
    tokens = [f"token{i}" for i in range(150_000)]
    path = write(tmp_path / "a.gguf", lambda w: w.add_array("tokenizer.ggml.tokens", tokens))
    program = (
        "import sys, time; from pathlib import Path\n"
        "from bluejay.checkpoints.gguf_file import GgufFile; started = time.time()\n"
        "file = GgufFile(Path(sys.argv[1])); print(time.time() - started < 0.15)\n"
        "print(file.metadata['tokenizer.ggml.tokens'][149_999], 'gguf' in sys.modules)"
    )
    command = [sys.executable, "-c", program, str(path)]
    out = subprocess.run(command, capture_output=True, check=True, text=True)
    assert out.stdout.split() == ["True", "token149999", "False"]


# A head by hand: as the format's description has it.


def text(value: bytes | str, length: int | None = None) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def tensor(
    name: str | bytes = "w",
    dims: tuple[int, ...] = (8,),
    *,
    kind: int = 0,
    offset: int = 0,
    rank: int | None = None,
) -> bytes:
    head = text(name) + struct.pack("<I", len(dims) if rank is None else rank)
    return head + struct.pack(f"<{len(dims)}QIQ", *dims, kind, offset)


def head(
    *parts: bytes, tensors: int = 0, keys: int = 0, version: int = 3, data: bytes | None = None
) -> bytes:
    body = b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)
    return body if data is None else body + bytes(-len(body) % 32) + data


def pair(key: str, kind: int, value: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + value


def array(kind: int, count: int, content: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + content


def alignment(value: int) -> bytes:
    return pair("general.alignment", 4, struct.pack("<I", value))


HOSTILE = {
    "only the magic": (b"GGUF", "cut short"),
    "10**6 keys in 100 bytes": (head(bytes(76), keys=10**6), "more than 100 bytes can hold"),
    "10**6 tensors in 100 bytes": (head(bytes(76), tensors=10**6), "more than 100 bytes"),
    "2**64 - 1 tensors": (head(bytes(76), tensors=2**64 - 1), "more than 100 bytes can hold"),
    "a million keys": (head(bytes(32 * 10**6), keys=10**6), "1,000,000 keys are too many"),
    "a string of 2**62": (
        head(pair("k", 8, text("x", 2**62)), bytes(99), keys=1),
        "cut short or damaged",
    ),
    "a key of 2**62": (head(text("k", 2**62), bytes(99), keys=1), "a name of 4,611"),
    "an array of 2**62 numbers": (
        head(pair("k", 9, array(4, 2**62)), bytes(99), keys=1),
        "cut short",
    ),
    "an array of 2**62 strings": (
        head(pair("k", 9, array(8, 2**62)), bytes(99), keys=1),
        "cut short",
    ),
    "strings that run out": (
        head(pair("k", 9, array(8, 3, text("a") + text("b", 90))), bytes(20), keys=1),
        "cut short",
    ),
    "millions of empty strings": (
        head(pair("k", 9, array(8, 5 * 10**6, bytes(40 * 10**6))), keys=1),
        "5,000,000 strings, too many",
    ),
    "arrays in arrays": (
        head(pair("k", 9, array(9, 1)), bytes(99), keys=1),
        "an array of arrays",
    ),
    "a value of no type": (head(pair("k", 77, b""), bytes(99), keys=1), "the unknown type 77"),
    "a key twice": (head(*[pair("k", 0, b"1")] * 2, keys=2), "'k' appears twice"),
    "a key with an escape": (head(pair("\x1b[2J", 0, b"1"), keys=1), "named '\\x1b[2J'"),
    "a key that is not UTF-8": (head(text(b"\xff"), bytes(9), keys=1), "not UTF-8"),
    "version 1": (head(bytes(99), version=1), "version 1"),
    "version 4": (head(bytes(99), version=4), "version 4"),
    "big-endian": (head(bytes(99), version=0x03000000), "big-endian"),
    "an alignment of 0": (head(alignment(0), keys=1, data=b""), "alignment of 0"),
    "an alignment of 33": (head(alignment(33), keys=1, data=b""), "alignment of 33"),
    "an alignment of 2**31": (head(alignment(2**31), keys=1, data=b""), "alignment of 2147483648"),
    "an alignment of text": (
        head(pair("general.alignment", 8, text("32")), keys=1, data=b""),
        "alignment of '32'",
    ),
    "a part of a split model": (
        head(pair("split.count", 2, struct.pack("<H", 3)), keys=1, data=b""),
        "one of 3 parts",
    ),
    "no dimensions": (head(tensor(dims=()), bytes(9), tensors=1), "0 dimensions"),
    "2**32 - 1 dimensions": (head(tensor(rank=2**32 - 1), tensors=1), "4294967295 dimensions"),
    "five dimensions": (head(tensor(dims=(1,) * 5), tensors=1, data=bytes(32)), "5 dimensions"),
    "a size of 2**63": (head(tensor(dims=(2**63,)), tensors=1, data=bytes(32)), "impossible"),
    "sizes that overflow": (
        head(tensor(dims=(2**32, 2**32)), tensors=1, data=bytes(32)),
        "impossible shape",
    ),
    "a size of 0": (head(tensor(dims=(0, 8)), tensors=1, data=bytes(32)), "impossible shape"),
    "half a block": (head(tensor(dims=(48,), kind=8), tensors=1, data=bytes(64)), "impossible"),
    "a type of the future": (head(tensor(kind=99), tensors=1, data=bytes(32)), "GGML type 99"),
    "a type for activations": (head(tensor(kind=15), tensors=1, data=bytes(32)), "type 15"),
    "a type that was removed": (head(tensor(kind=4), tensors=1, data=bytes(32)), "type 4,"),
    "an offset past the end": (head(tensor(offset=64), tensors=1, data=bytes(32)), "cut short"),
    "an offset of 2**63": (head(tensor(offset=2**63), tensors=1, data=bytes(32)), "cut short"),
    "an unaligned offset": (head(tensor(offset=4), tensors=1, data=bytes(64)), "not aligned"),
    "tensors that overlap": (
        head(tensor("a", (16,)), tensor("b", offset=32), tensors=2, data=bytes(64)),
        "'b' overlaps",
    ),
    "a tensor twice": (head(tensor(), tensor(), tensors=2, data=bytes(64)), "'w' appears twice"),
    "a tensor with an escape": (head(tensor("\x9b2J"), tensors=1, data=bytes(32)), "'\\x9b2J'"),
    "cut by one byte": (head(tensor(), tensors=1, data=bytes(31)), "cut short"),
    "extra bytes": (head(tensor(), tensors=1, data=bytes(64)), "32 extra bytes"),
}


@pytest.mark.parametrize("attack", HOSTILE)
def test_forged_heads_are_refused(tmp_path: Path, attack: str) -> None:
    content, reason = HOSTILE[attack]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    assert reason in refused(open_tensors, path)


def test_the_head_made_by_hand_is_a_good_one(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    data: NDArray[np.float32] = np.arange(8, dtype=np.float32)
    path.write_bytes(head(tensor(dims=(4, 2)), tensors=1, data=data.tobytes()))
    np.testing.assert_array_equal(open_tensors(tmp_path).read("w"), data.reshape(2, 4))
    path.write_bytes(head(tensor(dims=(4, 2)), tensors=1, version=2, data=data.tobytes()))
    assert open_tensors(tmp_path).tensors["w"].shape == (2, 4)


def test_text_that_is_not_utf8_is_refused_when_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(head(pair("k", 9, array(8, 1, text(b"\xff\xfe"))), keys=1, data=b""))
    file = GgufFile(path)
    with pytest.raises(CheckpointError, match="the value of 'k' is not UTF-8"):
        file.metadata["k"]


def test_several_models_in_a_folder_need_a_choice(tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(head(tensor(), tensors=1, data=bytes(32)))
    assert "several models (a.gguf, b.gguf)" in refused(open_tensors, tmp_path)
