"""The folder of a run: one writer at a time, and where its parts lie."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bluejay.core.errors import UsageError
from bluejay.core.files import disk_error, write_text_durably
from bluejay.runs.train_run import TrainRun, run_text

CHECKPOINTS = "checkpoints"


def create_run_folder(folder: Path, run: TrainRun) -> None:
    """Make the folder with run.json. UsageError if a run is there already, DiskError."""
    if (folder / "run.json").exists():
        raise UsageError(
            f"{folder} holds a run already: `bluejay resume {folder}` goes on with it, "
            "--run NAME begins another."
        )
    try:
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, folder) from error
    write_run(folder, run)


def write_run(folder: Path, run: TrainRun) -> None:
    """Write run.json, whole or not at all."""
    partial = folder / ".run.json.partial"
    try:
        write_text_durably(partial, run_text(run))
        partial.replace(folder / "run.json")
    except OSError as error:
        raise disk_error(error, folder / "run.json") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the run's lock, which the system releases however the process ends.

    Raises UsageError with the other process's id if it is held already.
    """
    with (folder / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read(20).strip() or "unknown"
            raise UsageError(
                f"{folder} is being trained by process {holder}: wait for it or stop it."
            ) from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
