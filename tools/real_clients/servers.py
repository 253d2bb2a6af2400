"""A `bluejay serve` in a process of its own, and what a check says."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


class Miss(Exception):  # noqa: N818  # what the check says instead of a traceback
    """A promise about a client that does not hold."""


def require(condition: object, promise: str, found: object = "") -> None:
    """Say that the promise holds, or raise Miss with what was found instead."""
    if not condition:
        raise Miss(f"{promise}: no. {found}".strip())
    print(f"ok   {promise}", flush=True)


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that is ready. `context` is how many tokens it takes, `log` its stderr."""

    model: str
    url: str
    context: int
    log: Path


@contextlib.contextmanager
def serving(model: str, *options: str) -> Iterator[Server]:
    """`bluejay serve` of a model on a free port, ready, until the block ends."""
    kept = {name: value for name, value in os.environ.items() if name != "BLUEJAY_API_KEY"}
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("w") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "bluejay", "serve", model, "--port", "0", *options],
                stdout=subprocess.PIPE, stderr=stderr, text=True, env=kept,
            )  # fmt: skip
        try:
            yield _ready(process, model, log)
        finally:
            process.terminate()
            process.communicate()


def _ready(process: "subprocess.Popen[str]", model: str, log: Path) -> Server:
    assert process.stdout is not None
    url = ""
    for line in process.stdout:
        url = url or (line.split(" at ")[-1].strip() if " at http" in line else "")
        if line.startswith("Ready after"):
            card = get_json(f"{url}/v1/models")["data"][0]
            return Server(model=card["id"], url=url, context=card["max_model_len"], log=log)
    raise Miss(f"bluejay serve {model} did not become ready: {log.read_text()[-1000:]}")


def get_json(url: str) -> Any:
    """What is at a URL."""
    with urllib.request.urlopen(url) as answer:
        return json.load(answer)


def run_quietly(command: list[str], folder: Path, **environment: str) -> str:
    """What a command prints; Miss with its last lines if it fails."""
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        said = (done.stdout + done.stderr)[-3000:]
        raise Miss(f"{Path(command[0]).name} ended with {done.returncode}:\n{said}")
    return done.stdout
