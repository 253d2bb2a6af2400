"""Mapped files that somebody cuts, overwrites or replaces while they are read."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import safetensors.numpy

from bluejay.checkpoints.files_in_use import changed_files
from bluejay.checkpoints.mapped_file import MappedFile
from bluejay.core.errors import CheckpointError

WEIGHTS = np.ones((64, 1024), np.float32)
SENTENCE = (
    "bluejay: {}: the file was cut, or its disk cannot be read, while it was in use: restore it and"
    " start again; replace files by renaming, never in place\n"
)
OPEN = """
import faulthandler, mmap, os, signal, sys
from pathlib import Path
from bluejay.checkpoints.mapped_file import MappedFile
from bluejay.checkpoints.opening import open_tensors

path, other = map(Path, sys.argv[1:])

def touch_cut(path, array):
    os.truncate(path, 4096)
    return int(array.sum())
"""
MAP_OTHER = """
import numpy as np
with other.open("rb") as file:
    found = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
"""


def child(code: str, path: Path, other: Path | None = None, **environment: str) -> tuple[int, str]:
    """How it ends, and its stderr."""
    done = subprocess.run(
        [sys.executable, "-c", OPEN + code, str(path), str(other)],
        capture_output=True,
        text=True,
        env=os.environ | environment,
    )
    return done.returncode, done.stderr


def write_gguf(path: Path) -> None:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("w", WEIGHTS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_safetensors(path: Path) -> None:
    safetensors.numpy.save_file({"w": WEIGHTS}, path)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "w.safetensors"
    write_safetensors(path)
    return path


@pytest.fixture
def other(tmp_path: Path) -> Path:
    path = tmp_path / "other"
    path.write_bytes(bytes(1 << 16))
    return path


@pytest.mark.parametrize("write", [write_gguf, write_safetensors])
@pytest.mark.parametrize("before", ["", "faulthandler.enable()"])
def test_who_reads_a_file_that_was_cut_says_so_and_ends(
    tmp_path: Path, write: Callable[[Path], None], before: str
) -> None:
    path = tmp_path / "weights"
    write(path)
    code = f"{before}\ntouch_cut(path, open_tensors(path).read('w'))"
    assert child(code, path) == (CheckpointError.exit_code, SENTENCE.format(path))


def test_a_file_that_was_closed_is_guarded_while_a_view_of_it_is_read(weights: Path) -> None:
    code = """
tensors = open_tensors(path)
array = tensors.read("w")
tensors.close()
touch_cut(path, array)
"""
    assert child(code, weights) == (CheckpointError.exit_code, SENTENCE.format(weights))


@pytest.mark.parametrize("before", ["", "file = MappedFile(path)"])
def test_every_other_address_ends_as_ever(weights: Path, other: Path, before: str) -> None:
    code = f"{before}\n{MAP_OTHER}\ntouch_cut(other, found)"
    assert child(code, weights, other) == (-signal.SIGBUS, "")


def test_a_handler_that_was_there_before_hears_of_other_addresses(
    weights: Path, other: Path
) -> None:
    code = f"faulthandler.enable()\nfile = MappedFile(path)\n{MAP_OTHER}\ntouch_cut(other, found)"
    status, told = child(code, weights, other)
    assert status == -signal.SIGBUS
    assert told.startswith("Fatal Python error: Bus error")
    assert told.count("in touch_cut") == 1
    assert "was cut" not in told


def test_a_handler_that_came_later_hears_first_and_the_process_ends(weights: Path) -> None:
    code = "array = open_tensors(path).read('w')\nfaulthandler.enable()\ntouch_cut(path, array)"
    status, told = child(code, weights)
    assert status == -signal.SIGBUS
    assert "in touch_cut" in told


def test_a_signal_that_was_sent_ends_the_process(weights: Path) -> None:
    code = "file = MappedFile(path)\nos.kill(os.getpid(), signal.SIGBUS)"
    assert child(code, weights) == (-signal.SIGBUS, "")


def test_the_guard_ends_with_the_mapping(weights: Path) -> None:
    """64 places do for any number of files, one after the other; beyond 64 at once none is told."""
    some = """
for number in range(200):
    kept = MappedFile(path).view(0, 65536) if number % 2 else MappedFile(path).close()
others = [MappedFile(path) for _ in range({})]
touch_cut(path, MappedFile(path).view(0, 65536))
"""
    assert child(some.format(62), weights)[0] == CheckpointError.exit_code
    write_safetensors(weights)
    assert child(some.format(63), weights) == (-signal.SIGBUS, "")


def test_without_the_library_it_is_as_ever(weights: Path) -> None:
    code = "touch_cut(path, open_tensors(path).read('w'))"
    assert child(code, weights, BLUEJAY_KERNELS="off") == (-signal.SIGBUS, "")


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"other")


def _replace(path: Path) -> None:
    new = path.with_name("new")
    new.write_bytes(b"another file")
    os.replace(new, path)


@pytest.mark.parametrize(
    ("change", "is_found"),
    [
        (_overwrite, True),
        (lambda path: os.truncate(path, 10), True),
        (_replace, False),
        (lambda path: path.unlink(), False),
        (lambda path: None, False),
    ],
)
def test_files_in_use_that_were_changed_are_found(
    weights: Path, change: Callable[[Path], None], is_found: bool
) -> None:
    os.utime(weights, (1_700_000_000, 1_700_000_000))
    file = MappedFile(weights)
    view = file.view(0, 8)
    change(weights)
    assert changed_files() == [weights] * is_found
    file.close()
    assert changed_files() == [weights] * is_found, "the view is in use"
    del file, view
    assert changed_files() == []
