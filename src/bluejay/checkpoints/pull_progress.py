"""What a pull tells its caller while it works: the phase, and how far it is in bytes."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bluejay.checkpoints.model_cache import folder_bytes

POLL_SECONDS = 0.2
"""Downloads and conversions are watched by the size of what they write: no tool is asked."""


@dataclass(frozen=True, kw_only=True)
class PullProgress:
    """One report; `total_bytes` is 0 where it is not known, `note` is one sentence or empty."""

    phase: Literal["wait", "download", "verify", "unpack", "convert"]
    done_bytes: int = 0
    total_bytes: int = 0
    note: str = ""


OnProgress = Callable[[PullProgress], None]


@contextmanager
def watching(
    folder: Path,
    on_progress: OnProgress,
    *,
    phase: Literal["download", "convert"],
    total_bytes: int,
    before: int = 0,
) -> Iterator[None]:
    """Report the size of `folder`, less `before`, from another thread; at the end, once more."""
    finished = threading.Event()

    def report() -> None:
        done = min(max(folder_bytes(folder) - before, 0), total_bytes)
        on_progress(PullProgress(phase=phase, done_bytes=done, total_bytes=total_bytes))

    def watch() -> None:
        while not finished.wait(POLL_SECONDS):
            report()

    thread = threading.Thread(target=watch, daemon=True, name="bluejay-pull-progress")
    on_progress(PullProgress(phase=phase, total_bytes=total_bytes))
    thread.start()
    try:
        yield
    finally:
        finished.set()
        thread.join()
    on_progress(PullProgress(phase=phase, done_bytes=total_bytes, total_bytes=total_bytes))
