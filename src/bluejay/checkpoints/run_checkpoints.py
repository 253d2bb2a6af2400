"""Where the checkpoints of a training run lie."""

import re
from pathlib import Path

from bluejay.core.errors import CheckpointError

_NAME = re.compile(r"step-(\d{8})")


def checkpoint_path(root: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return root / f"step-{step:08d}"


def checkpoints_in(root: Path) -> list[tuple[int, Path]]:
    """(step, folder) of every checkpoint by rising step, damaged ones included.

    Ordered by step, never by time: clocks jump and copies forget it.
    """
    folders = root.iterdir() if root.is_dir() else ()
    named = [(_NAME.fullmatch(path.name), path) for path in folders]
    return sorted((int(match[1]), path) for match, path in named if match)


def newest_of_run(run: Path) -> Path:
    """The newest checkpoint of a training run, which is a model as any other.

    Raises CheckpointError before the first one.
    """
    found = checkpoints_in(run / "checkpoints")
    if not found:
        raise CheckpointError(
            f"{run} is a training run without a checkpoint yet: wait for its first save."
        )
    return found[-1][1]
