"""Small training runs: prepared text, and the command line that trains on it."""

import json
import os
import random
import re
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from bluejay.kernels.library import library
from bluejay.recipes.bluejay_models import bluejay_nano
from bluejay.runs.prepared_data import remember_data
from bluejay.runs.run_folder import create_run_folder
from bluejay.runs.train_run import TrainRun

# Of their own: a child that is killed while it writes must not disturb the other tests.
COMPILED = Path(os.environ["BLUEJAY_CACHE"]) / "compiled-by-children"
PASSAGE = Path(__file__).parent / "golden" / "smollm2" / "passage.txt"


def write_texts(folder: Path, *, num_texts: int = 12, num_sentences: int = 60) -> None:
    """Files of sentences whose words come from a page of a novel, the same every time."""
    words = PASSAGE.read_text(encoding="utf-8").split()
    rng = random.Random(5)
    folder.mkdir(parents=True)
    for number in range(num_texts):
        sentences = [" ".join(rng.choices(words, k=9)) for _ in range(num_sentences)]
        (folder / f"text-{number:02d}.txt").write_text("\n\n".join(sentences), encoding="utf-8")


def prepared_text(folder: Path) -> Path:
    """A folder that `bluejay prepare` made of them, with a vocabulary of 512."""
    write_texts(folder / "texts")
    data = folder / "data"
    options = ("--vocab-size", "512", "--held-out", "0.2")
    done = bluejay("prepare", folder / "texts", "--out", data, *options)
    assert done.returncode == 0, done.stderr
    return data


def new_run(folder: Path, data: Path, **changes: Any) -> TrainRun:
    """A run folder with the nano recipe, ready for `bluejay resume`; `changes` of intervals."""
    run = bluejay_nano()
    run = replace(run, intervals=replace(run.intervals, **changes))
    create_run_folder(folder, run)
    remember_data(folder, data)
    return run


def bluejay(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "bluejay", *map(str, arguments)],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(COMPILED)} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def start(*arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    """The same, to be interrupted."""
    return subprocess.Popen(
        [sys.executable, "-m", "bluejay", *map(str, arguments)],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(COMPILED)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(run: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Return when the run has measured that many steps."""
    end = time.monotonic() + 240
    while last_step(run) < step:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, f"{run} did not come to step {step}"
        time.sleep(0.01)


def last_step(run: Path) -> int:
    """The last step in metrics.jsonl, or 0."""
    path = run / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    steps = []
    for line in lines:
        try:
            steps.append(json.loads(line)["step"])
        except ValueError:
            continue  # cut by a kill
    return steps[-1] if steps else 0


def final_hashes(run: Path) -> dict[str, str]:
    """sha256 of parameters and state of the newest checkpoint, from its manifest."""
    newest = sorted((run / "checkpoints").glob("step-????????"))[-1]
    files = json.loads((newest / "MANIFEST.json").read_text())["files"]
    names = ("model.safetensors", "training_state.safetensors")
    return {"checkpoint": newest.name} | {name: files[name]["sha256"] for name in names}


def losses(run: Path) -> list[float]:
    """The training loss of every step, as measured in float32."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def this_machine(kernels: str) -> str:
    """What the last bits depend on: kind of processor, cores, JAX, and our kernels."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(re.findall(r"^(vendor_id|cpu family|model)\s*: (.+)$", info, re.M))
    kind = "-".join(fields.get(name, "?") for name in ("vendor_id", "cpu family", "model"))
    usable = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    return f"{kind}, {len(usable)} cores, jax {version('jax')}, kernels {kernels}"


def best_kernels() -> str:
    """The instruction set that runs here unless another is forced."""
    found = library()
    return "off" if found is None else found.instruction_set
