"""What is said where there are no native kernels, and that everything works all the same."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import bluejay
from bluejay.kernels.library import library, library_status


def kernels_row(**environment: str) -> str:
    code = "from bluejay.kernels.library import library_status; print(library_status())"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_library_says_what_it_runs_on() -> None:
    found = library()
    assert found is not None
    assert library_status() == f"{found.instruction_set}, {found.num_threads} threads"


@pytest.mark.parametrize(
    ("wish", "said"),
    [
        ("off", "switched off by BLUEJAY_KERNELS=off; everything runs on the reference"),
        ("portable", "portable, "),
        ("sse9", "BLUEJAY_KERNELS=sse9 is none of portable, avx2, avx512, avx512_bf16, neon, or"),
        ("no/such.so", "cannot be loaded ("),
    ],
)
def test_the_variable(wish: str, said: str) -> None:
    assert kernels_row(BLUEJAY_KERNELS=wish).startswith(said)


@pytest.mark.parametrize("kept", [0, 3, 64, 5000, -1])
def test_a_library_cut_short_is_not_loaded(tmp_path: Path, kept: int) -> None:
    """As a full disk leaves it; the loader alone would die of most of these."""
    spec = importlib.util.find_spec("bluejay.kernels._kernels")
    assert spec is not None
    whole = Path(str(spec.origin)).read_bytes()
    (tmp_path / "short.so").write_bytes(whole[:kept])
    said = kernels_row(BLUEJAY_KERNELS=str(tmp_path / "short.so"))
    assert said.startswith("cannot be loaded ("), said
    assert said.endswith("everything runs on the reference implementation")


def test_the_child_of_a_fork_has_threads_of_its_own() -> None:
    """As many as its parent was told to use; the parent's own did not come along."""
    code = (
        "import os, signal, numpy as np\n"
        "from bluejay.kernels.library import library\n"
        "found, memory = library(), np.ones(1 << 22, np.uint8)\n"
        "found.set_num_threads(3)\n"
        "found.read_bandwidth(memory)\n"
        "child = os.fork()\n"
        "if child == 0:\n"
        "    signal.alarm(60)\n"
        "    found.read_bandwidth(memory)\n"
        "    os._exit(len(os.listdir('/proc/self/task')))\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "3\n", done.stderr


def test_without_the_library_the_remedy_is_named(tmp_path: Path) -> None:
    """The sources alone on the path: what an install without a compiler leaves."""
    (tmp_path / "bluejay").symlink_to(Path(library_folder()), target_is_directory=True)
    code = (
        "import sys;"
        "sys.meta_path = [f for f in sys.meta_path if 'Redirect' not in type(f).__name__];"
        f"sys.path.insert(0, {str(tmp_path)!r});"
        "from bluejay.kernels.library import library_status; print(library_status())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        # Not the library of one's own that the sanitizer's run names.
        env=os.environ | {"BLUEJAY_KERNELS": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "not built: install a C++ compiler" in done.stdout, done.stdout


def library_folder() -> str:
    return str(Path(bluejay.__file__).parent)


def test_doctor_has_a_row() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bluejay", "doctor", "--json"],
        env=os.environ | {"BLUEJAY_KERNELS": "off"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["machine"]["kernels"].startswith("switched off")
