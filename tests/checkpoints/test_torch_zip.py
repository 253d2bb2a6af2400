"""Torch checkpoints: files that torch wrote, files that harm, and one of more than 4 GiB."""

import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bluejay.checkpoints.opening import open_tensors
from bluejay.checkpoints.torch_zip import TorchZipFile
from checkpoints.refusals import refused

GOLDEN = Path(__file__).parents[1] / "golden" / "torch"


def test_reads_what_torch_wrote() -> None:
    expected = np.load(GOLDEN / "expected.npz")
    file = TorchZipFile(GOLDEN / "weights.bin")
    assert set(file.tensors) == set(expected.files) - {"torch"}
    for name, info in file.tensors.items():
        found, wanted = file.read(name), expected[name]
        is_bfloat16 = name.startswith("bfloat16")
        assert found.dtype == info.dtype == (ml_dtypes.bfloat16 if is_bfloat16 else wanted.dtype)
        assert found.shape == info.shape == wanted.shape, name
        np.testing.assert_array_equal(found.astype(wanted.dtype), wanted, name)
        assert found.flags.c_contiguous
    assert file.tensors["bfloat16"].stored == "torch.bfloat16"
    assert np.shares_memory(file.read("float32"), file.read("tied"))
    assert np.shares_memory(file.read("float32"), file.read("rows_2_to_5"))
    assert not file.read("float32").flags.writeable
    file.close()


def test_weights_of_a_training_script_are_found_under_model() -> None:
    file = open_tensors(GOLDEN / "training.pt")
    assert list(file.tensors) == ["weight", "bias"]
    np.testing.assert_array_equal(file.read("weight"), [[0, 1, 2], [3, 4, 5]])


def test_newer_pickles_and_dtypes_are_read() -> None:
    file = open_tensors(GOLDEN / "protocol_4.pt")
    assert {n: file.read(n).astype(np.float64).tolist() for n in file.tensors} == {
        "uint16": [0, 1, 65535],
        "float8": [1, -448],
        "bfloat16": [1, -3],
    }
    assert file.read("float8").dtype == ml_dtypes.float8_e4m3fn


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("legacy.bin", "before version 1.6"),
        ("module.bin", "torch.nn.modules.linear.Linear"),
        ("torchscript.pt", "a TorchScript program"),
        ("quantized.pt", "torch._utils._rebuild_qtensor"),
    ],
)
def test_other_files_of_torch_are_refused_by_name(name: str, reason: str) -> None:
    assert reason in refused(open_tensors, GOLDEN / name)


def test_folders_with_one_file_and_with_shards(tmp_path: Path) -> None:
    shutil.copy(GOLDEN / "weights.bin", tmp_path / "pytorch_model.bin")
    assert len(open_tensors(tmp_path).tensors) == 17
    (tmp_path / "pytorch_model.bin").unlink()
    shutil.copy(GOLDEN / "training.pt", tmp_path / "pytorch_model-00001-of-00001.bin")
    index = tmp_path / "pytorch_model.bin.index.json"
    shard = "pytorch_model-00001-of-00001.bin"
    index.write_text(f'{{"weight_map": {{"weight": "{shard}", "bias": "{shard}"}}}}')
    for path in (tmp_path, index):
        np.testing.assert_array_equal(open_tensors(path).read("bias"), [-1, 1])
    index.write_text('{"weight_map": {"weight": "../x.bin", "bias": "model.safetensors"}}')
    sentence = refused(open_tensors, tmp_path)
    assert "'../x.bin' is not a plain" in sentence
    assert "'model.safetensors' is not a plain" in sentence


# A pickle by hand: the opcodes of one tensor, as torch writes them.


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", value)


def numbers(*values: int) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


def tensor(
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    *,
    offset: int = 0,
    count: int = 4,
    key: str = "0",
    storage: bytes = b"ctorch\nFloatStorage\n",
) -> bytes:
    identity = b"(" + text("storage") + storage + text(key) + text("cpu") + number(count) + b"tQ"
    window = number(offset) + numbers(*shape) + numbers(*strides)
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + window + hooks + b"tR"


def state(**tensors: bytes) -> bytes:
    items = b"".join(text(name) + value for name, value in tensors.items())
    return b"\x80\x02ccollections\nOrderedDict\n)R(" + items + b"u."


def write_zip(path: Path, data_pkl: bytes, **storages: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        archive.writestr("archive/byteorder", "little")
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key.removeprefix('_')}", content)
    return path


FOUR = np.arange(4, dtype=np.float32).tobytes()


def test_the_pickle_made_by_hand_is_a_good_one(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "a.bin", state(w=tensor((2, 2), (1, 2))), _0=FOUR)
    np.testing.assert_array_equal(TorchZipFile(path).read("w"), [[0, 2], [1, 3]])


SHAPES: dict[str, tuple[bytes, str]] = {
    "more rows than bytes": (tensor((3, 2), (2, 1)), "past its bytes"),
    "a stride past the end": (tensor((2, 2), (3, 1)), "past its bytes"),
    "an offset past the end": (tensor((2,), (1,), offset=3), "past its bytes"),
    "an offset of 2**62": (tensor((2,), (1,), offset=2**62), "past its bytes"),
    "a negative offset": (tensor((2,), (1,), offset=-1), "unknown way"),
    "a negative stride": (tensor((2,), (-1,), offset=3), "unknown way"),
    "a negative size": (tensor((-2,), (1,)), "unknown way"),
    "fewer strides than sizes": (tensor((2, 2), (1,)), "unknown way"),
    "a thousand dimensions": (tensor((1,) * 1000, (1,) * 1000), "unknown way"),
    "an expanded bomb": (tensor((2**40,), (0,)), "larger than its bytes"),
    "an expanded bomb in two": (tensor((2**40, 2**40), (0, 0)), "larger than its bytes"),
    "an empty bomb": (tensor((0, 2**62), (1, 1)), "larger than its bytes"),
    "a storage that is too long": (tensor((2,), (1,), count=5), "past its bytes"),
    "a storage that is too short": (tensor((2,), (1,), count=3), "past its bytes"),
    "a storage of 2**62": (tensor((2,), (1,), count=2**62), "past its bytes"),
    "a storage that is missing": (tensor((2,), (1,), key="7"), "are missing"),
    "a storage outside": (tensor((2,), (1,), key="../../data.pkl"), "are missing"),
    "quantized elements": (
        tensor((2,), (1,), storage=b"ctorch\nQInt8Storage\n"),
        "torch.QInt8Storage",
    ),
}


@pytest.mark.parametrize("attack", SHAPES)
def test_tensors_that_leave_their_bytes_are_refused(tmp_path: Path, attack: str) -> None:
    value, reason = SHAPES[attack]
    path = write_zip(tmp_path / "a.bin", state(w=value), _0=FOUR)
    assert reason in refused(TorchZipFile, path)


class Harm:
    """Pickles to a call of `function`."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._call


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("place", ["alone", "in a dict", "beside weights"])
def test_code_in_a_pickle_never_runs(tmp_path: Path, protocol: int, place: str) -> None:
    marker = tmp_path / "ran"
    harm = pickle.dumps(Harm(os.system, f"touch {marker}"), protocol)
    if place == "in a dict":
        harm = pickle.dumps({"w": Harm(os.mkdir, str(marker))}, protocol)
    if place == "beside weights":
        start = 2 if protocol >= 2 else 0
        harm = state(w=tensor((2,), (1,)), x=harm[start:-1].replace(b"\x95", b"\x95"))
    path = write_zip(tmp_path / "a.bin", harm, _0=FOUR)
    sentence = refused(TorchZipFile, path)
    if protocol >= 2:
        name = "posix.mkdir" if place == "in a dict" else "posix.system"
        assert f"asks for {name} to be run" in sentence
    for disguise in ("model.safetensors", "model.gguf", "pytorch_model.bin"):
        bare = tmp_path / disguise
        bare.write_bytes(harm)
        refused(open_tensors, bare)
    assert not marker.exists()


def long_text(size: int) -> bytes:
    return b"\x8d" + struct.pack("<Q", size)


PICKLES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "cut short"),
    "nothing on the stack": (b"\x80\x02.", "damaged"),
    "a mark as the result": (b"\x80\x02(.", "damaged"),
    "no end": (b"\x80\x02}", "cut short"),
    "a string of 2**62": (b"\x80\x02" + long_text(2**62) + b"x.", "cut short"),
    "a string that is not UTF-8": (b"\x80\x02X\x02\0\0\0\xff\xff.", "damaged"),
    "an integer of 4 GB": (b"\x80\x02\x8b\xff\xff\xff\xff.", "integer of 4294967295 bytes"),
    "a global without an end": (b"\x80\x02c" + b"a" * 600, "damaged"),
    "a memo that is not there": (b"\x80\x02h\x05.", "damaged"),
    "items for no dict": (b"\x80\x02](K\x01K\x02u.", "damaged"),
    "an odd number of items": (b"\x80\x02}(K\x01K\x02K\x03u.", "damaged"),
    "a tuple as a key": (b"\x80\x02})K\x01s.", "tuple as a key"),
    "a call of a number": (b"\x80\x02K\x01)R.", "not a function"),
    "a call of a storage": (b"\x80\x02ctorch\nFloatStorage\n)R.", "calls torch.FloatStorage"),
    "an instance": (b"\x80\x02(ios\nsystem\n.", "opcode b'i'"),
    "a new object": (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "opcode b'\\x81'"),
    "an extension": (b"\x80\x02\x82\x01.", "opcode b'\\x82'"),
    "a name with an escape": (b"\x80\x02cos\n\x1b[2Jsystem\n)R.", "os.\\x1b[2Jsystem"),
    "builtins": (b"\x80\x02cbuiltins\neval\n", "builtins.eval"),
    "getattr by a dotted name": (b"\x80\x04\x8c\x05torch\x8c\x09os.system\x93.", "torch.os.system"),
    "a global from numbers": (b"\x80\x04K\x01K\x02\x93.", "damaged"),
    "a list": (b"\x80\x02].", "top level is a list"),
    "no tensors": (b"\x80\x02}X\x01\0\0\0aK\x01s.", "a dict with 'a' without tensors"),
    "a persistent id that is text": (b"\x80\x02X\x01\0\0\0aQ.", "storage in an unknown way"),
    "a tensor of nothing": (b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.", "unknown way"),
    "an escape in a tensor's name": (state(**{"\x1b[2J": tensor((2,), (1,))}), "'\\x1b[2J'"),
    "a billion laughs": (
        # Tuples of the tuple before, 100 deep: 2**100 elements for whoever walks them.
        b"\x80\x02)q\0" + b"h\0h\0\x86q\0" * 100 + b"}h\0K\x01s.",
        "tuple as a key",
    ),
    "nested deeply": (b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".", "top level is a list"),
}


@pytest.mark.parametrize("attack", PICKLES)
def test_hostile_pickles_are_refused(tmp_path: Path, attack: str) -> None:
    data_pkl, reason = PICKLES[attack]
    path = write_zip(tmp_path / "a.bin", data_pkl, _0=FOUR)
    assert reason in refused(TorchZipFile, path)


def test_a_pickle_of_millions_of_opcodes_is_refused_within_a_second() -> None:
    """Timed in a process of its own, because the tests check every call and so slow it down."""
    program = (
        "import time; from bluejay.checkpoints.state_pickle import *; started = time.time()\n"
        "try: read_state_pickle(b'\\x80\\x02' + b'N0' * 5_000_000)\n"
        "except StatePickleError as error: print(time.time() - started < 1, error)"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert out.stdout == b"True has a pickle of more than 300,000 opcodes\n"


def test_containers_of_other_kinds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", state(w=tensor((2,), (1,))))
        archive.writestr("archive/data/0", bytes(10**7))
    assert "'archive/data.pkl' is compressed" in refused(TorchZipFile, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("config.json", "{}")
    assert "not a torch checkpoint; unpack it" in refused(TorchZipFile, path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", state(w=tensor((2,), (1,))))
        archive.writestr("a/data/0", FOUR)
        archive.writestr("a/byteorder", "big")
    assert "big-endian" in refused(TorchZipFile, path)


def test_a_container_of_more_than_4_gib(tmp_path: Path) -> None:
    """A real ZIP64 file, but for a hole where the first storage has no bytes on the disk."""
    hole, path = 9 * 2**29, tmp_path / "pytorch_model.bin"
    tail = np.arange(8, dtype=np.float32)
    first = tensor((4,), (1,), count=hole // 4, offset=hole // 4 - 4)
    second = tensor((2, 4), (4, 1), count=8, key="1")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", state(first=first, second=second))
        entry = zipfile.ZipInfo("archive/data/0")
        stream: Any = archive.fp
        entry.header_offset = stream.tell()
        entry.file_size = entry.compress_size = hole
        entry.CRC = 0
        stream.write(entry.FileHeader(zip64=True))
        stream.seek(hole - 16, os.SEEK_CUR)
        stream.write(FOUR)
        archive.filelist.append(entry)
        archive.NameToInfo[entry.filename] = entry
        archive.start_dir = stream.tell()
        archive.writestr("archive/data/1", tail.tobytes())
        assert archive.getinfo("archive/data/1").header_offset > 2**32
    assert path.stat().st_size > 2**32
    assert path.stat().st_blocks * 512 < 2**20
    file = open_tensors(tmp_path)
    np.testing.assert_array_equal(file.read("second"), tail.reshape(2, 4))
    np.testing.assert_array_equal(file.read("first"), np.arange(4))
    file.close()
