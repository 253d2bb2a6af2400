"""Archives that `numpy.savez` wrote, and archives that only look so."""

import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from bluejay.checkpoints.npz_file import NpzFile
from checkpoints.refusals import refused


def test_reads_what_numpy_writes(tmp_path: Path) -> None:
    arrays = {
        "floats": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "scalar": np.array(5),
        "one": np.float16([1.5]),
        "empty": np.zeros((0, 3)),
        "bool": np.array([True, False]),
    }
    path = tmp_path / "a.npz"
    np.savez(path, **arrays, bf16=np.ones(3, ml_dtypes.bfloat16).view("V2"))
    file = NpzFile(path)
    assert list(file.arrays) == [*arrays, "bf16"]
    for name, expected in arrays.items():
        found = file.read(name)
        assert found.dtype == file.arrays[name].dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    assert file.read("bf16").dtype == ml_dtypes.bfloat16
    file.close()


def npy(descr: str = "'<f4'", shape: str = "(2,)", data: bytes = bytes(8), rest: str = "") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, {rest}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data


ARRAYS = {
    "objects": (npy("'|O'"), "Python objects"),
    "structured": (npy("[('a', '<f4')]"), "never writes"),
    "code in the header": (npy(shape="(__import__('os').getpid(),)"), "never writes"),
    "an extra field": (npy(rest="'x': 1"), "never writes"),
    "big-endian": (npy("'>f4'"), "dtype '>f4'"),
    "text": (npy("'<U2'"), "dtype '<U2'"),
    "a bomb by its header": (npy(shape="(1099511627776,)"), "8 bytes it should"),
    "sizes that overflow": (npy(shape="(4294967296, 4294967296, 0)"), "it should"),
    "a negative size": (npy(shape="(-2,)"), "never writes"),
    "cut short": (npy(data=bytes(7)), "7 bytes"),
    "extra bytes": (npy(data=bytes(9)), "9 bytes"),
    "no array": (b"hello", "not a NumPy array"),
    "a header past the end": (b"\x93NUMPY\x01\x00\xff\x0f{}" + bytes(20), "header of 4,095"),
    "a header of 4 GB": (b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}" + bytes(20), "4,294,967,295"),
    "version 9": (b"\x93NUMPY\x09\x00" + npy()[8:], "not a NumPy array"),
}


@pytest.mark.parametrize("attack", ARRAYS)
def test_hostile_arrays_are_refused(tmp_path: Path, attack: str) -> None:
    content, reason = ARRAYS[attack]
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", content)
    assert reason in refused(NpzFile, path)


def test_a_compressed_bomb_is_refused_unopened(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    np.savez_compressed(path, arr_0=np.zeros(10**7, np.float32))
    assert path.stat().st_size < 50_000
    assert "'arr_0.npy' is compressed" in refused(NpzFile, path)


def archive_of(*entries: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return buffer.getvalue()


def changed(data: bytes, signature: bytes, offset: int, code: str, value: int) -> bytes:
    """The archive with one field changed, `offset` bytes behind the last `signature`."""
    position = data.rindex(signature) + offset
    out = bytearray(data)
    struct.pack_into(code, out, position, value)
    return bytes(out)


PLAIN = archive_of(("arr_0.npy", npy()), ("arr_1.npy", npy()))
END, ENTRY, LOCAL = b"PK\x05\x06", b"PK\x01\x02", b"PK\x03\x04"
ZIPS: dict[str, Any] = {
    "cut in half": (PLAIN[: len(PLAIN) // 2], "cut short"),
    "cut by one byte": (PLAIN[:-1], "cut short"),
    "one byte too many": (PLAIN + b"x", "damaged"),
    "text before it": (b"PK\x03\x04" + PLAIN, "damaged"),
    "65,000 entries": (changed(PLAIN, END, 10, "<H", 65000), "damaged"),
    "a directory past the end": (changed(PLAIN, END, 16, "<L", 2**31), "damaged"),
    "a directory elsewhere": (changed(PLAIN, END, 16, "<L", 3), "damaged"),
    "ZIP64 that is not there": (changed(PLAIN, END, 16, "<L", 2**32 - 1), "damaged"),
    "an entry past the end": (changed(PLAIN, ENTRY, 42, "<L", 2**31), "damaged"),
    "an entry elsewhere": (changed(PLAIN, ENTRY, 42, "<L", 5), "damaged"),
    "an entry of 2 GiB": (changed(PLAIN, ENTRY, 24, "<L", 2**31), "damaged"),
    "a name of 60,000 bytes": (changed(PLAIN, ENTRY, 28, "<H", 60000), "damaged"),
    "entries that overlap": (changed(PLAIN, ENTRY, 42, "<L", 0), "overlaps"),
    "an encrypted entry": (changed(PLAIN, ENTRY, 8, "<H", 1), "encrypted"),
    "an entry that reaches into the directory": (
        changed(changed(PLAIN, ENTRY, 24, "<L", 400), ENTRY, 20, "<L", 400),
        "reaches past its end",
    ),
}


@pytest.mark.parametrize("attack", ZIPS)
def test_damaged_and_forged_archives_are_refused(tmp_path: Path, attack: str) -> None:
    content, reason = ZIPS[attack]
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    assert reason in refused(NpzFile, path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_names_that_repeat_or_move_the_cursor_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(archive_of(("arr_0.npy", npy()), ("arr_0.npy", npy())))
    assert "'arr_0.npy' appears twice" in refused(NpzFile, path)
    path.write_bytes(archive_of(("\x1b[2J.npy", npy())))
    assert "'\\x1b[2J.npy'" in refused(NpzFile, path)
