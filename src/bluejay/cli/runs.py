"""`bluejay runs`: the training runs there are, and how far each is."""

from __future__ import annotations

import argparse
import json
import math
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluejay.cli.parser import CommandParser
from bluejay.cli.status import duration
from bluejay.cli.table import print_table, print_text
from bluejay.cli.terminal import is_terminal, shortened, styled
from bluejay.vocab.quoting import one_line

if TYPE_CHECKING:
    from bluejay.runs.run_history import RunStatus

_LONGEST_NAME = 40


def add_arguments(parser: CommandParser) -> None:
    """The options of `bluejay runs`."""
    parser.add_argument(
        "folder",
        metavar="FOLDER",
        nargs="?",
        help="where the runs lie, or one of them (default: runs)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> None:
    """List the runs, the one last heard of first."""
    from bluejay.runs.run_history import RUNS_FOLDER, find_runs

    folder = RUNS_FOLDER if arguments.folder is None else Path(arguments.folder).expanduser()
    # Before the first run there is no folder of runs, and nothing wrong with that.
    is_new = arguments.folder is None and not folder.exists()
    found = [] if is_new else find_runs(folder)
    if arguments.json:
        document = {"folder": str(folder), "runs": [_document(run) for run in found]}
        print(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2))
    elif found:
        _print_runs(found)
    else:
        where = one_line(str(folder))
        print_text(f"There are no runs in {where} yet: `bluejay train my.txt` starts one.")


def count_words(count: float) -> str:
    """A count in three digits: 950, 40.9k, 12.3M, 1.5B."""
    for unit in ("", "k", "M", "B", "T"):
        if count < 999.5 or unit == "T":
            break
        count /= 1000
    return f"{count:.3g}{unit}"


def loss_words(loss: float | None) -> str:
    """A loss, or bits per byte, to a thousandth; empty for none."""
    return "" if loss is None else f"{loss:.4g}" if abs(loss) >= 1000 else f"{loss:.3f}"


def printable(text: str, columns: int = _LONGEST_NAME) -> str:
    """A name or a sentence out of a file, on one line, unable to steer the terminal."""
    return shortened(one_line(text), columns)


def age(seconds: float) -> str:
    """How long ago: just now, 40 s ago, 3 min ago, 5 h ago, 12 days ago."""
    if seconds < 5:  # or later than now, by a clock that goes before ours
        return "just now"
    for size, unit, most in ((1, "s", 60), (60, "min", 3600), (3600, "h", 48 * 3600)):
        if seconds < most:
            return f"{seconds // size:.0f} {unit} ago"
    return f"{seconds // 86400:.0f} days ago"


def _print_runs(runs: list[RunStatus]) -> None:
    now = datetime.now(UTC)
    # A blank says it to a person, a dash keeps the columns of a pipe apart.
    none = "" if is_terminal(sys.stdout) else "-"
    rows = [[cell or none for cell in _row(run, now)] for run in runs]
    header = ["run", "state", "step", "tokens", "loss", "bits/byte", "tokens/s", "used", "left"]
    print_table(rows, header=[*header, "updated"], right=[2, 3, 4, 5, 6, 7, 8])
    # What is damaged names its file itself.
    names = ["" if run.state == "damaged" else f"{_name(run)}: " for run in runs]
    reasons = [
        f"{name}{printable(run.reason, 500)}"
        for name, run in zip(names, runs, strict=True)
        if run.reason
    ]
    if reasons:
        print()
    for reason in reasons:
        print_text(reason)
    stopped = [run for run in runs if run.state in ("interrupted", "killed")]
    if stopped and is_terminal(sys.stdout):
        print()
        folder = one_line(str(stopped[0].folder))
        print_text(f"A run that stopped goes on with `bluejay resume {folder}`.")


def _row(run: RunStatus, now: datetime) -> list[str]:
    name = styled(_name(run), "bold")
    if run.state == "damaged":
        return [name, run.state, *[""] * 8]
    rate, left = run.tokens_per_second, run.seconds_left
    is_over = run.state in ("finished", "failed")
    return [
        name,
        run.state,
        f"{run.step:,}/{run.total_steps:,}",
        count_words(run.tokens),
        loss_words(run.loss),
        loss_words(run.bits_per_byte),
        "" if rate is None else count_words(rate),
        duration(run.seconds),
        "" if is_over or left is None else duration(left),
        "" if run.updated is None else age((now - run.updated).total_seconds()),
    ]


def _name(run: RunStatus) -> str:
    """The folder's name, which commands take, and the run's own where it is another."""
    folder = run.folder.resolve().name
    own = "" if run.name == folder else f" ({run.name})"
    return printable(folder + own)


def _document(run: RunStatus) -> dict[str, Any]:
    from dataclasses import asdict

    document = asdict(run)
    document["folder"] = str(run.folder)
    document["updated"] = None if run.updated is None else run.updated.isoformat()
    # JSON has no NaN: a loss that is none is null.
    return {
        key: None if isinstance(value, float) and not math.isfinite(value) else value
        for key, value in document.items()
    }
