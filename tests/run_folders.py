"""Folders of training runs as the trainer leaves them, with a loss that is known everywhere."""

import json
import math
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

TOKENS_PER_STEP, SECONDS_PER_STEP = 4096, 2.31


def loss_at(step: int) -> float:
    """From 8.3 down, towards 2.9."""
    return 2.9 + 5.4 * (1 + step / 12) ** -0.62


def train_line(step: int, /, **changes: Any) -> dict[str, Any]:
    line = {"kind": "train", "step": step, "tokens": step * TOKENS_PER_STEP}
    line |= {"seconds": step * SECONDS_PER_STEP, "loss": loss_at(step), "gradient_norm": 0.7}
    return line | {"learning_rate": 0.003, "tokens_per_second": 1770.0} | changes


def eval_line(step: int, /, **changes: Any) -> dict[str, Any]:
    line = {"kind": "eval", "step": step, "tokens": step * TOKENS_PER_STEP}
    line |= {"seconds": step * SECONDS_PER_STEP, "loss": loss_at(step) + 0.1}
    return line | {"bits_per_byte": (loss_at(step) + 0.1) / math.log(2) / 2.6} | changes


def curve_lines(last: int, *, every: int = 10, evals: int = 50) -> list[dict[str, Any]]:
    lines = []
    for step in range(every, last + 1, every):
        lines.append(train_line(step))
        if step % evals == 0:
            lines.append(eval_line(step))
    return lines


def write_run(
    folder: Path, lines: Iterable[dict[str, Any]] = (), *, name: str | None = None, end: str = ""
) -> Path:
    """A run with these measurements; `end` comes after the last line, as from a killed writer."""
    folder.mkdir(parents=True)
    name = folder.name if name is None else name
    description = {"name": name, "model": {"num_layers": 2}, "total_steps": 3000}
    (folder / "run.json").write_text(json.dumps(description | {"tokens_per_step": TOKENS_PER_STEP}))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text + end)
    return folder


def write_status(folder: Path, state: str, /, **changes: Any) -> dict[str, Any]:
    """The status of step 1,137 of 3,000; gives what was written."""
    status = {"state": state, "reason": None, "step": 1137, "total_steps": 3000}
    status |= {"tokens": 1137 * TOKENS_PER_STEP, "total_tokens": 3000 * TOKENS_PER_STEP}
    status |= {"loss": 3.2041, "bits_per_byte": 1.81, "tokens_per_second": 1770.2}
    status |= {"seconds": 2631.0, "seconds_left": 4311.2, "pid": 4242}
    status |= {"updated": datetime.now(UTC).isoformat()} | changes
    (folder / "status.json").write_text(json.dumps(status))
    return status


def values(lines: Sequence[dict[str, Any]], kind: str, key: str) -> list[Any]:
    return [line[key] for line in lines if line["kind"] == kind]
