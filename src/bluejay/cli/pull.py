"""`bluejay pull`: fetch a model once."""

import argparse

from bluejay.checkpoints.catalogue import CATALOGUE
from bluejay.checkpoints.model_cache import size_text
from bluejay.cli.parser import CommandParser
from bluejay.cli.status import status

_PHASES = {
    "wait": "Waiting for",
    "download": "Downloading",
    "verify": "Verifying",
    "unpack": "Unpacking",
    "convert": "Converting",
}


def add_arguments(parser: CommandParser) -> None:
    """The options of `bluejay pull`."""
    parser.add_argument(
        "name",
        metavar="NAME",
        help="a name from `bluejay models`, or owner/name from the Hugging Face hub",
    )


def run(arguments: argparse.Namespace) -> None:
    """Bring the model here, with progress, and say where it is."""
    with status() as shown:
        shown.say(f"Looking for {arguments.name}")
        from bluejay.checkpoints.pull import pull
        from bluejay.checkpoints.pull_progress import PullProgress

        def on_progress(progress: PullProgress) -> None:
            if progress.note:
                shown.note(progress.note)
            activity = f"{_PHASES[progress.phase]} {arguments.name}"
            shown.say(activity, progress.done_bytes, progress.total_bytes)

        path = pull(arguments.name, on_progress=on_progress)
    licence = CATALOGUE[arguments.name].licence if arguments.name in CATALOGUE else ""
    # Links are followed: a snapshot of the hub's cache consists of them.
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    size = size_text(sum(file.stat().st_size for file in files))
    details = ", ".join(part for part in (size, licence) if part)
    print(f"{arguments.name} is here ({details}): {path}")
