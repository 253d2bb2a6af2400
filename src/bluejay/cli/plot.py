"""`bluejay plot`: the loss curves of training runs, as a picture."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from bluejay.cli.parser import CommandParser, one_of
from bluejay.cli.runs import count_words, loss_words, printable
from bluejay.cli.status import status
from bluejay.vocab.quoting import one_line

if TYPE_CHECKING:
    from bluejay.runs.run_history import RunCurves

_AGAINST = ("tokens", "time", "both")


def add_arguments(parser: CommandParser) -> None:
    """The options of `bluejay plot`."""
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        help="the folder of a run, or its name in `runs`; several are drawn in one picture",
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="the picture to write, .png or .svg (default: loss.png in RUN, comparison.png in the "
        "first of several)",
    )
    parser.add_argument(
        "--against",
        metavar="|".join(_AGAINST),
        type=one_of(*_AGAINST),
        default="both",
        help="what to draw the losses against (default: both, side by side)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Draw, then print where each run stands and where the picture is."""
    from bluejay.runs.run_history import find_run

    # A run that was named twice is one run.
    folders = list({path.resolve(): path for path in map(find_run, arguments.runs)}.values())
    name = "loss.png" if len(folders) == 1 else "comparison.png"
    given = arguments.output
    destination = folders[0] / name if given is None else Path(given).expanduser()
    with status() as shown:
        shown.say("Drawing")
        from bluejay.runs.plotting import labels, plot_runs

        runs = plot_runs(folders, destination, against=arguments.against)
    for label, drawn in zip(labels(runs), runs, strict=True):
        print(f"{printable(label, 60)}: {_summary(drawn)}")
        _warn_of_cut_lines(drawn)
    print(f"The picture is {one_line(str(destination))}")


def _summary(run: RunCurves) -> str:
    """The last measurements of a run."""
    longest = max((run.train, run.held_out), key=lambda curve: max(curve.steps, default=-1))
    if not len(longest):
        return "nothing measured yet"
    parts = []
    if len(run.train):
        parts.append(f"loss {loss_words(float(run.train.loss[-1]))}")
    if len(run.held_out):
        bits = float(run.held_out.bits_per_byte[-1])
        parts.append(f"held-out {loss_words(float(run.held_out.loss[-1]))}")
        parts += [] if math.isnan(bits) else [f"{loss_words(bits)} bits per byte"]
    tokens, step = int(longest.tokens[-1]), int(longest.steps[-1])
    return ", ".join([*parts, f"{count_words(tokens)} tokens, step {step:,}"])


def _warn_of_cut_lines(run: RunCurves) -> None:
    if run.num_unreadable:
        lines = "1 line was" if run.num_unreadable == 1 else f"{run.num_unreadable:,} lines were"
        place = one_line(str(run.folder / "metrics.jsonl"))
        print(f"Left out: {lines} cut short in {place}", file=sys.stderr)
