"""`bluejay train`, from a recipe or from one's own text, and `bluejay resume`."""

from __future__ import annotations

import argparse
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from bluejay.cli.loading import add_threads_argument, announce_compiling, parameter_words
from bluejay.cli.parser import CommandParser, positive_number, real_number
from bluejay.cli.prepare import reporter, tokenizer_of
from bluejay.cli.runs import count_words
from bluejay.cli.status import Status, duration, status
from bluejay.cli.table import print_table
from bluejay.cli.terminal import bar, is_terminal
from bluejay.core.errors import InterruptedRunError, UsageError

if TYPE_CHECKING:
    from bluejay.runs.train_run import TrainRun
    from bluejay.runs.training import Outcome
    from bluejay.training.callbacks import Progress

_BAR_COLUMNS = 16
# Without a terminal, a line this often: enough to follow a run in a log, not to fill it.
_LOG_SECONDS = 30.0


def add_arguments(parser: CommandParser) -> None:
    """The options of `bluejay train`."""
    parser.add_argument(
        "what",
        metavar="RECIPE|FILE",
        nargs="?",
        help="a recipe, or your own text: a file, or a folder of .txt, .md, .jsonl and archives",
    )
    parser.add_argument("--list", action="store_true", help="list the recipes and exit")
    parser.add_argument(
        "--from", dest="start_from", metavar="MODEL", help="begin with a model's weights"
    )
    parser.add_argument(
        "--data", metavar="DIR", help="prepared shards, or the folder of raw text to prepare"
    )
    parser.add_argument("--run", metavar="DIR", help="the run's folder (default: runs/NAME)")
    parser.add_argument("--steps", metavar="N", type=positive_number, help="how many steps")
    _add_minutes(parser)
    parser.add_argument(
        "--dry-run", action="store_true", help="say what it would do and how long that takes"
    )


def add_resume_arguments(parser: CommandParser) -> None:
    """The options of `bluejay resume`."""
    parser.add_argument(
        "run", metavar="RUN", nargs="?", help="its folder or name (default: the last one)"
    )
    parser.add_argument("--data", metavar="DIR", help="prepared shards, if they have moved")
    parser.add_argument(
        "--steps", metavar="N", type=positive_number, help="end after that many steps in all"
    )
    _add_minutes(parser)


def _add_minutes(parser: CommandParser) -> None:
    parser.add_argument(
        "--minutes", metavar="M", type=real_number, help="save and stop after that many minutes"
    )
    add_threads_argument(parser)


def run(arguments: argparse.Namespace) -> None:
    """Prepare what is missing, say what will be done, and train."""
    if arguments.list:
        _print_recipes()
        return
    if arguments.what is None:
        raise UsageError("Give a recipe or your own text: `bluejay train --list` shows recipes.")
    with status() as shown:
        shown.say("Starting")
        from bluejay.kernels.threads import use_threads

        use_threads(arguments.threads)
        described, folder, data = _described(arguments, shown)
        shown.say("Estimating")
        from bluejay.runs.training_estimate import estimate

        expected = estimate(described)
    _print_plan(described, folder, expected.seconds)
    if arguments.dry_run:
        return
    from bluejay.runs.prepared_data import remember_data
    from bluejay.runs.run_folder import create_run_folder

    create_run_folder(folder, described)
    remember_data(folder, data)
    _train(described, folder, data, minutes=arguments.minutes)


def resume(arguments: argparse.Namespace) -> None:
    """Go on with a run from its newest sound checkpoint."""
    from bluejay.kernels.threads import use_threads
    from bluejay.runs.prepared_data import remembered_data
    from bluejay.runs.run_folder import write_run
    from bluejay.runs.run_history import RUNS_FOLDER, find_run, find_runs
    from bluejay.runs.train_run import read_run, with_total_steps

    use_threads(arguments.threads)
    if arguments.run is None:
        found = find_runs(RUNS_FOLDER) if RUNS_FOLDER.is_dir() else []
        if not found:
            raise UsageError("There are no runs in runs yet: `bluejay train my.txt` starts one.")
        folder = found[0].folder
    else:
        folder = find_run(arguments.run)
    described = read_run(folder)
    data = Path(arguments.data) if arguments.data else remembered_data(folder)
    if arguments.steps is not None:
        described = with_total_steps(described, arguments.steps)
        write_run(folder, described)
    print(f"Going on with {folder}.", file=sys.stderr)
    _train(described, folder, data, minutes=arguments.minutes)


def _described(arguments: argparse.Namespace, shown: Status) -> tuple[TrainRun, Path, Path]:
    """The run, its folder, and its shards, which are made now if they are not there."""
    given = Path(arguments.what).expanduser()
    if given.exists() and not _is_recipe(arguments.what):
        return _own_text(arguments, given, shown)
    from bluejay.recipes.registry import recipe
    from bluejay.runs.prepared_data import recipe_data
    from bluejay.runs.train_run import with_total_steps

    described = recipe(arguments.what)
    folder = Path(arguments.run or Path("runs") / described.name)
    _require_new(folder, is_trial=arguments.dry_run)
    if arguments.steps is not None:
        described = with_total_steps(described, arguments.steps)
    if arguments.start_from is not None:
        described = replace(described, start_from=arguments.start_from)
    where = Path(arguments.data).expanduser() if arguments.data else None
    data = recipe_data(described.data, where, on_progress=reporter(shown))
    return described, folder, data


def _own_text(
    arguments: argparse.Namespace, given: Path, shown: Status
) -> tuple[TrainRun, Path, Path]:
    from bluejay.recipes.own_text import OWN_TEXT, own_text, own_text_from
    from bluejay.runs.prepared_data import is_prepared, prepare_now
    from bluejay.runs.train_run import with_total_steps

    name = given.resolve().name.split(".")[0] or "own-text"
    folder = Path(arguments.run or Path("runs") / name)
    _require_new(folder, is_trial=arguments.dry_run)
    data = folder / "data"
    if is_prepared(given):
        data = given
    elif not is_prepared(data):
        tokenizer = tokenizer_of(arguments.start_from) if arguments.start_from else None
        progress = reporter(shown)
        prepare_now(OWN_TEXT, [given], data, tokenizer=tokenizer, on_progress=progress)
    if arguments.start_from:
        described = own_text_from(name, data, arguments.start_from)
    else:
        described = own_text(name, data)
    if arguments.steps is not None:
        described = with_total_steps(described, arguments.steps)
    return described, folder, data


def _is_recipe(text: str) -> bool:
    from bluejay.recipes.registry import RECIPES

    return text in RECIPES


def _require_new(folder: Path, *, is_trial: bool) -> None:
    if (folder / "run.json").exists() and not is_trial:
        raise UsageError(
            f"{folder} holds a run already: `bluejay resume {folder}` goes on with it, and "
            "--run DIR begins another."
        )


def _print_recipes() -> None:
    from bluejay.recipes.registry import RECIPES

    rows = [[name, (make.__doc__ or "").split("\n")[0]] for name, make in RECIPES.items()]
    print_table(rows, flexible=1)


def _print_plan(run: TrainRun, folder: Path, seconds: float) -> None:
    from bluejay.model.specs import decoder_specs, parameter_count

    parameters = parameter_count(decoder_specs(run.model))
    tokens = run.total_steps * run.batch.tokens
    start = f", from {run.start_from}" if run.start_from else ""
    shape = f"{run.model.num_layers} layers of width {run.model.embed_dim}"
    batch = f"{run.batch.rows} x {run.batch.length}"
    model = f"{parameter_words(parameters)}: {shape}, {run.model.vocab_size:,} ids{start}"
    rows = [
        ["model", model],
        ["steps", f"{run.total_steps:,} of {batch} tokens: {count_words(tokens)} tokens"],
        ["time", f"about {duration(seconds)} on this machine, if nothing else runs on it"],
        ["folder", f"{folder} (Ctrl-C saves; `bluejay resume` goes on)"],
    ]
    print_table(rows, flexible=1)
    sys.stdout.flush()


def _train(run: TrainRun, folder: Path, data: Path, *, minutes: float | None) -> None:
    from bluejay.runs.training import Listener, run_training

    with status() as shown:
        announce_compiling(shown, "Training")
        display = _Display(shown)
        listener = Listener(on_progress=display.show, on_note=shown.note)
        seconds = math.inf if minutes is None else 60 * minutes
        outcome = run_training(run, folder, data, listener, seconds=seconds)
    if not outcome.is_finished:
        raise InterruptedRunError(
            f"Stopped after step {outcome.progress.step:,} of {run.total_steps:,}, which is saved: "
            f"`bluejay resume {folder}` goes on."
        )
    _print_end(outcome, folder)


def _print_end(outcome: Outcome, folder: Path) -> None:
    progress = outcome.progress
    held_out = progress.bits_per_byte
    measured = f", {held_out:.3f} bits per byte on held-out text" if held_out is not None else ""
    print(f"Trained {progress.step:,} steps in {duration(progress.seconds)}{measured}.")
    print(f'Try it: bluejay generate "Once upon a time" --model {folder}')
    print(f"See it learn: bluejay plot {folder}; its samples: {folder}/samples.jsonl")


class _Display:
    """One living line on a terminal, a line now and then elsewhere, and one per evaluation."""

    def __init__(self, shown: Status) -> None:
        self._shown = shown
        self._evaluated: float | None = None
        self._said = time.monotonic()

    def show(self, progress: Progress) -> None:
        """Called at every measurement."""
        text = progress_text(progress)
        if progress.bits_per_byte != self._evaluated:
            self._evaluated = progress.bits_per_byte
            self._note(text)
        elif not is_terminal(sys.stderr) and time.monotonic() - self._said > _LOG_SECONDS:
            self._note(text)
        share = progress.step / progress.total_steps
        drawn = bar(share, _BAR_COLUMNS).ljust(_BAR_COLUMNS)
        self._shown.live(f"{drawn} {text}")

    def _note(self, text: str) -> None:
        self._said = time.monotonic()
        self._shown.note(text)


def progress_text(progress: Progress) -> str:
    """step 250/6,000  loss 3.41  1.98 bits/byte held out  1,730 tokens/s  2 h 10 min left"""
    parts = [f"step {progress.step:,}/{progress.total_steps:,}"]
    if progress.loss is not None:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.bits_per_byte is not None:
        parts.append(f"{progress.bits_per_byte:.3f} bits/byte held out")
    if progress.tokens_per_second is not None:
        parts.append(f"{progress.tokens_per_second:,.0f} tokens/s")
    if progress.seconds_left:
        parts.append(f"{duration(progress.seconds_left)} left")
    return "  ".join(parts)
