"""The loss curves of runs as a picture in a file."""

import os
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from bluejay.core.errors import DataError, UsageError
from bluejay.core.files import disk_error
from bluejay.runs.run_history import RunCurves, read_metrics
from bluejay.vocab.quoting import one_line

Against = Literal["tokens", "time", "both"]
"""What the losses are drawn against; both gives two panels."""

FORMATS = (".png", ".svg")
MAX_RUNS = 28
"""Seven colours in four kinds of line; more could not be told apart."""

_LONGEST_LABEL = 48


def plot_runs(
    folders: Sequence[Path], destination: Path, *, against: Against = "both"
) -> list[RunCurves]:
    """Draw the runs into one picture, PNG or SVG by the name of `destination`; gives what it drew.

    Train loss is drawn smoothed over its faint raw line, held-out loss as marked points, and
    held-out bits per byte in a panel below where they were measured. The same measurements give
    the same bytes, with one version of matplotlib. An existing picture is replaced, at once.

    Raises UsageError for another format, too many runs or without matplotlib, DataError for a
    folder that is no run or where nothing was measured yet, DiskError if the write fails.
    """
    if not 1 <= len(folders) <= MAX_RUNS:
        raise UsageError(f"One picture shows 1 to {MAX_RUNS} runs, not {len(folders)}.")
    _require_format(destination)
    runs = [read_metrics(folder) for folder in folders]
    empty = [run for run in runs if not len(run.train) + len(run.held_out)]
    if len(empty) == len(runs):
        raise DataError(
            f"{one_line(str(runs[0].folder))} has no measurements yet: a run writes the first "
            "after a few steps, so try again soon."
        )
    picture: bytes = _figures().rendered(
        runs, labels(runs), against, destination.suffix[1:].lower()
    )
    _write_whole(destination, picture)
    return runs


def labels(runs: Sequence[RunCurves]) -> list[str]:
    """What to call each run in a picture: its name, or its folder where two have one name."""
    uses = Counter(run.name for run in runs)
    names = [run.name if uses[run.name] == 1 else str(run.folder) for run in runs]
    return [_shortened(one_line(name)) for name in names]


def _shortened(name: str) -> str:
    if len(name) <= _LONGEST_LABEL:
        return name
    half = _LONGEST_LABEL // 2
    return f"{name[: half - 1]}…{name[-half:]}"


def _require_format(destination: Path) -> None:
    shown = one_line(str(destination))
    if destination.suffix.lower() not in FORMATS:
        raise UsageError(f"{shown} names no kind of picture: end it in .png or .svg.")
    if os.path.isdir(destination):
        raise UsageError(f"{shown} is a folder: give the name of a file for the picture.")


def _figures() -> Any:
    """The module that draws; imported when it is needed, because matplotlib takes half a second
    and belongs to an extra."""
    try:
        return import_module("bluejay.runs.run_figure")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("bluejay"):
            raise
        raise UsageError(
            f"Pictures need the package {error.name}, which is not here: run "
            "`pip install 'bluejay[train]'`."
        ) from error


def _write_whole(destination: Path, content: bytes) -> None:
    partial = destination.with_name(f".{destination.name}.partial-{os.getpid()}")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content)
            partial.replace(destination)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise disk_error(error, destination) from error
