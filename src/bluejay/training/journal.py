"""What a run writes about itself, and the clock that times it.

metrics.jsonl and samples.jsonl grow by lines, status.json is replaced. A resumed run repeats some
steps, and readers take the later line. No failed write stops a training: it is said once.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

OnWarning = Callable[[str], None]


class Journal:
    """The writer of one run's folder; only the process that holds its lock has one."""

    def __init__(self, folder: Path, *, on_warning: OnWarning) -> None:
        self._folder, self._on_warning = folder, on_warning
        self._has_warned = False
        with self._reported():
            _end_cut_line(folder / "metrics.jsonl")
            _end_cut_line(folder / "samples.jsonl")

    def measure(self, kind: str, values: Mapping[str, float | int]) -> None:
        """Append one line to metrics.jsonl. What is not finite becomes null."""
        self._append("metrics.jsonl", {"kind": kind} | {k: _plain(v) for k, v in values.items()})

    def sample(self, values: Mapping[str, Any]) -> None:
        """Append one line to samples.jsonl."""
        self._append("samples.jsonl", values)

    def status(self, values: Mapping[str, Any]) -> None:
        """Replace status.json; readers see the old one or the new one."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        document = {k: _plain(v) for k, v in values.items()} | {"pid": os.getpid(), "updated": now}
        with self._reported():
            partial = self._folder / ".status.json.partial"
            partial.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
            partial.replace(self._folder / "status.json")

    def _append(self, name: str, values: Mapping[str, Any]) -> None:
        with self._reported(), (self._folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(values, ensure_ascii=False) + "\n")

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                self._on_warning(
                    f"{self._folder} takes no more notes ({error.strerror}): training goes on "
                    "without them."
                )


class Stopwatch:
    """Seconds of training over all sittings; what happens in `paused` is not counted."""

    def __init__(self, before: float = 0.0) -> None:
        self._counted = before
        self._since: float | None = time.monotonic()

    def seconds(self) -> float:
        """The reading."""
        return self._counted + (time.monotonic() - self._since if self._since else 0.0)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stand still inside the block."""
        self._counted, self._since = self.seconds(), None
        try:
            yield
        finally:
            self._since = time.monotonic()


def _plain(value: Any) -> Any:
    is_number = isinstance(value, float)
    return value if not is_number or math.isfinite(value) else None


def _end_cut_line(path: Path) -> None:
    """A killed writer may have left half a line: end it, so that the next one stands alone."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
