"""What training runs wrote down: their curves, where they stand, and which there are. No JAX.

A run is a folder with `run.json` (what it is), `metrics.jsonl` (measurements, one a line),
`status.json` (how far it is) and `lock`, which its process holds with flock. All of them may come
from another machine, be half copied, or be written to at this moment.
"""

import fcntl
import json
import math
import os
import stat
from array import array
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.json_file import parse_json_object
from bluejay.core.errors import CheckpointError, DataError
from bluejay.vocab.quoting import one_line, quoted

RUNS_FOLDER = Path("runs")
"""Where runs lie that were given a name only."""

_WRITTEN_STATES = ("running", "interrupted", "finished", "failed")
_MAX_OBJECT_BYTES = 4 * 2**20
# Half a million lines of a run that tells 500 bytes about every step.
_MAX_METRICS_BYTES = 256 * 2**20
_MAX_LINE_BYTES = 64 * 2**10
_LARGEST_COUNT = 2**62
_REMEDY = "copy the run's folder again, or remove what does not belong there"


@dataclass(frozen=True, kw_only=True, eq=False)
class Curve:
    """Measurements of one kind, by rising step.

    `seconds` is training time over all sittings. `loss` is in nats per token, NaN or infinite
    where training diverged; `bits_per_byte` is NaN where a line told none.
    """

    steps: NDArray[np.int64]  # points
    tokens: NDArray[np.int64]  # points
    seconds: NDArray[np.float64]  # points
    loss: NDArray[np.float64]  # points
    bits_per_byte: NDArray[np.float64]  # points

    def __len__(self) -> int:
        return len(self.steps)


@dataclass(frozen=True, kw_only=True, eq=False)
class RunCurves:
    """The measurements of a run; `num_unreadable` lines were cut when the process was killed."""

    name: str
    folder: Path
    train: Curve
    held_out: Curve
    num_unreadable: int


@dataclass(frozen=True, kw_only=True)
class RunStatus:
    """How far a run is, in its own words but for three states.

    "killed" is a run that says it is running while no process holds its lock, "starting" one that
    has written no status yet, "damaged" one whose files cannot be read, for `reason`. Losses are
    in nats per token, times in seconds.
    """

    folder: Path
    name: str
    state: str
    reason: str | None = None
    step: int = 0
    total_steps: int = 0
    tokens: int = 0
    total_tokens: int = 0
    loss: float | None = None
    bits_per_byte: float | None = None
    tokens_per_second: float | None = None
    seconds: float = 0.0
    seconds_left: float | None = None
    updated: datetime | None = None


def find_run(name: str) -> Path:
    """The folder of a run that was typed: a path, or the name of a folder in `runs`.

    Raises DataError if neither is there.
    """
    given = Path(name).expanduser()
    named = RUNS_FOLDER / name
    return given if _is_run(given) or not _is_run(named) else named


def find_runs(root: Path) -> list[RunStatus]:
    """The runs in a folder (or the folder itself, if it is one), the one last heard of first.

    A run that cannot be read is listed as "damaged". Raises DataError if `root` is no folder.
    """
    if not os.path.isdir(root):
        raise DataError(f"There is no folder {_shown(root)}: give the one that holds your runs.")
    if _is_run(root):
        return [_status_or_damage(root)]
    # What is being written under a temporary name begins with a dot.
    folders = sorted(path for path in root.iterdir() if not path.name.startswith("."))
    runs = [_status_or_damage(folder) for folder in folders if _is_run(folder)]
    return sorted(runs, key=lambda run: -run.updated.timestamp() if run.updated else math.inf)


def read_status(folder: Path) -> RunStatus:
    """How far a run is. Raises DataError for a folder that is none, and for damaged files."""
    _require_run(folder)
    written = _written_status(folder)
    if written.state not in ("running", "starting") or _is_locked(folder):
        return written
    # Its process may have ended between the two looks, and said so.
    again = _written_status(folder)
    return replace(again, state="killed") if again.state == written.state else again


def read_metrics(folder: Path) -> RunCurves:
    """The measurements of a run; none yet is an empty curve.

    After a resume a run does some steps again: a line replaces the earlier ones of its kind from
    its step on. A line cut short by the end of its process is left out. Raises DataError for a
    folder that is no run, and for lines that are not what a run writes.
    """
    _require_run(folder)
    columns = {"train": _Columns(), "eval": _Columns()}
    num_read = num_unreadable = 0
    for record in _metric_lines(folder / "metrics.jsonl"):
        if record is None:
            num_unreadable += 1
            continue
        num_read += 1
        kind = record.values.get("kind")
        if isinstance(kind, str) and kind in columns:
            columns[kind].add(record)
    if num_unreadable and not num_read:
        raise DataError(f"{_shown(folder / 'metrics.jsonl')} holds no line of JSON: {_REMEDY}.")
    return RunCurves(
        name=_run_record(folder).optional_text("name") or folder.resolve().name,
        folder=folder,
        train=columns["train"].curve(),
        held_out=columns["eval"].curve(),
        num_unreadable=num_unreadable,
    )


class _Columns:
    """Measurements as they are read: 40 bytes each, where Python's own objects take 300."""

    def __init__(self) -> None:
        self._whole = {name: array("q") for name in ("step", "tokens")}
        self._real = {name: array("d") for name in ("seconds", "loss", "bits_per_byte")}

    def add(self, record: "_Record") -> None:
        """Append a line's values, in place of those from its step on."""
        whole = {name: record.count(name) for name in self._whole}
        bits = record.optional_number("bits_per_byte")
        real = {
            "seconds": record.seconds("seconds"),
            "loss": record.number_or_nan("loss"),
            "bits_per_byte": math.nan if bits is None else bits,
        }
        first = bisect_left(self._whole["step"], whole["step"])
        for name, count in whole.items():
            del self._whole[name][first:]
            self._whole[name].append(count)
        for name, value in real.items():
            del self._real[name][first:]
            self._real[name].append(value)

    def curve(self) -> Curve:
        """Everything so far."""
        return Curve(
            steps=np.array(self._whole["step"], np.int64),
            tokens=np.array(self._whole["tokens"], np.int64),
            seconds=np.array(self._real["seconds"], np.float64),
            loss=np.array(self._real["loss"], np.float64),
            bits_per_byte=np.array(self._real["bits_per_byte"], np.float64),
        )


@dataclass(frozen=True, kw_only=True)
class _Record:
    """A JSON object and where it stood; its fields come with their type or as a DataError."""

    where: str
    values: dict[str, Any]

    def count(self, key: str) -> int:
        value = self.values.get(key)
        if type(value) is int and 0 <= value <= _LARGEST_COUNT:
            return value
        raise self._refusal(key, "a whole number")

    def number(self, key: str) -> float:
        value = self.values.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                pass
        raise self._refusal(key, "a number")

    def number_or_nan(self, key: str) -> float:
        """JSON has no NaN, so writers may say null; the key has to be there."""
        is_null = key in self.values and self.values[key] is None
        return math.nan if is_null else self.number(key)

    def seconds(self, key: str) -> float:
        value = self.number(key)
        if 0 <= value <= _LARGEST_COUNT:
            return value
        raise self._refusal(key, "a number of seconds")

    def optional_number(self, key: str) -> float | None:
        return None if self.values.get(key) is None else self.number(key)

    def optional_text(self, key: str) -> str | None:
        value = self.values.get(key)
        if value is None or isinstance(value, str):
            return value
        raise self._refusal(key, "a text")

    def optional_time(self, key: str) -> datetime | None:
        text = self.optional_text(key)
        if text is None:
            return None
        try:
            time = datetime.fromisoformat(text)
        except ValueError:
            raise self._refusal(key, "a date and time as of ISO 8601") from None
        return time if time.tzinfo else time.replace(tzinfo=UTC)

    def _refusal(self, key: str, expected: str) -> DataError:
        value = self.values.get(key)
        found = "missing" if value is None else quoted(value)
        return DataError(f"{self.where}: {key} is {found}, not {expected}; {_REMEDY}.")


def _written_status(folder: Path) -> RunStatus:
    description = _run_record(folder)
    name = description.optional_text("name") or folder.resolve().name
    path = folder / "status.json"
    if not path.exists():
        total = description.count("total_steps") if "total_steps" in description.values else 0
        return RunStatus(folder=folder, name=name, state="starting", total_steps=total)
    record = _read_record(path)
    state = record.optional_text("state")
    if state not in _WRITTEN_STATES:
        found = "missing" if state is None else quoted(state)
        known = f"{', '.join(_WRITTEN_STATES[:-1])} or {_WRITTEN_STATES[-1]}"
        raise DataError(f"{_shown(path)}: state is {found}, not {known}; {_REMEDY}.")
    left = record.values.get("seconds_left")
    return RunStatus(
        folder=folder,
        name=name,
        state=state,
        reason=record.optional_text("reason"),
        step=record.count("step"),
        total_steps=record.count("total_steps"),
        tokens=record.count("tokens"),
        total_tokens=record.count("total_tokens"),
        loss=record.optional_number("loss"),
        bits_per_byte=record.optional_number("bits_per_byte"),
        tokens_per_second=record.optional_number("tokens_per_second"),
        seconds=record.seconds("seconds"),
        seconds_left=None if left is None else record.seconds("seconds_left"),
        updated=record.optional_time("updated"),
    )


def _status_or_damage(folder: Path) -> RunStatus:
    try:
        return read_status(folder)
    except (DataError, OSError) as error:
        return RunStatus(folder=folder, name=folder.name, state="damaged", reason=str(error))


def _is_run(folder: Path) -> bool:
    try:
        return (folder / "run.json").exists()
    except OSError:  # a folder that we may not look into, a name that is too long
        return False


def _require_run(folder: Path) -> None:
    if _is_run(folder):
        return
    if not os.path.isdir(folder):  # False, too, for a name that is too long
        raise DataError(f"There is no run {_shown(folder)}: `bluejay runs` lists those there are.")
    raise DataError(
        f"{_shown(folder)} is not the folder of a run (it has no run.json): `bluejay runs` lists "
        "those there are."
    )


def _is_locked(folder: Path) -> bool:
    """Whether a process holds the run's lock; True where that cannot be found out."""
    try:
        # A named pipe in its place must not make us wait.
        descriptor = os.open(folder / "lock", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        # Shared, so that two who look do not see each other; given back at once.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _run_record(folder: Path) -> _Record:
    return _read_record(folder / "run.json")


def _read_record(path: Path) -> _Record:
    with _opened(path, _MAX_OBJECT_BYTES) as file:
        text = file.read(_MAX_OBJECT_BYTES)
    try:
        return _Record(where=_shown(path), values=parse_json_object(text, path=path))
    except CheckpointError as error:  # the parser's word for any file that is damaged
        raise DataError(f"{error}; {_REMEDY}.") from error


def _metric_lines(path: Path) -> Iterator[_Record | None]:
    """The lines that are JSON objects, None for those that cannot be read, but for a last one
    without an end: it is being written, or its writer was killed."""
    if not path.exists():
        return
    shown, number = _shown(path), 0
    with _opened(path, _MAX_METRICS_BYTES) as file:
        while line := file.readline(_MAX_LINE_BYTES + 1):
            number += 1
            where = f"{shown}, line {number}"
            if len(line) > _MAX_LINE_BYTES:
                raise DataError(f"{where} is longer than {_MAX_LINE_BYTES:,} bytes; {_REMEDY}.")
            if not line.strip():
                continue
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                if line.endswith(b"\n"):
                    yield None
                continue
            if not isinstance(values, dict):
                raise DataError(f"{where} is {quoted(values)}, not a JSON object; {_REMEDY}.")
            yield _Record(where=where, values=values)


@contextmanager
def _opened(path: Path, max_bytes: int) -> Iterator[BinaryIO]:
    """A regular file of at most `max_bytes`, for reading; DataError for anything else."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise DataError(f"{_shown(path)} cannot be read ({reason}): {_REMEDY}.") from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode):
        os.close(descriptor)
        raise DataError(f"{_shown(path)} is not a regular file: {_REMEDY}.")
    with os.fdopen(descriptor, "rb") as file:
        if found.st_size > max_bytes:
            size = f"{found.st_size:,} bytes, more than the {max_bytes:,} that are read"
            raise DataError(f"{_shown(path)} has {size}: {_REMEDY}.")
        yield file


def _shown(path: Path) -> str:
    return one_line(str(path))
