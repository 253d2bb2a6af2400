"""A mesh that cannot be had is refused in one sentence, before anything is loaded."""

import subprocess
import sys

import pytest

from bluejay.core.errors import UsageError
from bluejay.runs.mesh_loading import serving_mesh


def test_one_device_needs_no_mesh() -> None:
    assert serving_mesh(None) is None
    assert serving_mesh({"model": 1}) is None


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        (
            {"model": 2},
            "--mesh model=2 needs 2 devices, and only 1 device is here: leave --mesh out",
        ),
        ({"model": 0}, "at least 1 device, not model=0"),
        ({"data": 2}, r"data=2 would hold the model 2 times: start so many servers .*replicas\.md"),
        ({"tensor": 4}, "no axis 'tensor': model=4 shares the model"),
    ],
)
def test_what_cannot_be_is_refused(sizes: dict[str, int], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        serving_mesh(sizes)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("4", "--mesh takes model=N, such as model=2, not '4'."),
        ("model=2", "--mesh model=2 needs 2 devices, and only 1 device is here: leave --mesh out."),
    ],
)
def test_the_command_line_says_so(given: str, sentence: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bluejay", "serve", "bluejay-tiny", "--port", "0", "--mesh", given],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"bluejay: {sentence}"
    assert "Traceback" not in done.stderr
