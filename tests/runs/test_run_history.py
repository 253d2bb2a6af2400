"""What a run wrote is read as it was meant, and what nobody meant is refused in one sentence."""

import fcntl
import json
import math
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bluejay.core.errors import DataError
from bluejay.runs.run_history import find_run, find_runs, read_metrics, read_status
from run_folders import curve_lines, eval_line, train_line, values, write_run, write_status

HOLD_LOCK = (
    "import fcntl, sys, time\n"
    "file = open(sys.argv[1], 'w')\n"
    "fcntl.flock(file, fcntl.LOCK_EX)\n"
    "print('held', flush=True)\n"
    "time.sleep(300)\n"
)


def refused(read: Any, path: Path) -> str:
    """The one sentence that reading must fail with."""
    with pytest.raises(DataError) as caught:
        read(path)
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert sentence.endswith(".")
    return sentence


def test_reading_runs_needs_neither_jax_nor_matplotlib() -> None:
    script = (
        "import sys, bluejay.runs.run_history, bluejay.runs.plotting\n"
        "print(sorted({'jax', 'jaxlib', 'matplotlib'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_curves_are_what_was_written(tmp_path: Path) -> None:
    lines = curve_lines(200)
    other = {"kind": "sample", "step": 7, "loss": "not a loss"}
    curves = read_metrics(write_run(tmp_path / "tiny", [*lines, other], name="tiny stories"))
    assert curves.name == "tiny stories"
    assert curves.num_unreadable == 0
    for kind, curve in (("train", curves.train), ("eval", curves.held_out)):
        assert curve.steps.tolist() == values(lines, kind, "step")
        assert curve.tokens.tolist() == values(lines, kind, "tokens")
        assert curve.seconds.tolist() == values(lines, kind, "seconds")
        assert curve.loss.tolist() == values(lines, kind, "loss")
    assert curves.held_out.bits_per_byte.tolist() == values(lines, "eval", "bits_per_byte")
    assert np.isnan(curves.train.bits_per_byte).all()


def test_a_cut_last_line_is_left_out(tmp_path: Path) -> None:
    lines = curve_lines(100)
    whole = json.dumps(train_line(110))
    for number, end in enumerate(whole[:length] for length in range(1, len(whole), 7)):
        curves = read_metrics(write_run(tmp_path / str(number), lines, end=end))
        assert curves.train.steps[-1] == 100
        assert curves.num_unreadable == 0
    complete = read_metrics(write_run(tmp_path / "complete", lines, end=whole))
    assert complete.train.steps[-1] == 110


def test_a_line_cut_before_a_resume_is_counted(tmp_path: Path) -> None:
    torn = write_run(tmp_path / "torn", curve_lines(100), end='{"kind": "trai\n')
    with (torn / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(train_line(110)) + "\n")
    curves = read_metrics(torn)
    assert curves.train.steps.tolist() == list(range(10, 111, 10))
    assert curves.num_unreadable == 1


def test_after_a_resume_the_later_line_wins(tmp_path: Path) -> None:
    """Killed after step 130, resumed from the checkpoint of step 100, now at step 120."""
    again = [train_line(step, loss=1.0, seconds=999.0 + step) for step in (110, 120)]
    run = write_run(tmp_path / "run", [*curve_lines(130), *again])
    curves = read_metrics(run)
    assert curves.train.steps.tolist() == list(range(10, 121, 10))
    assert curves.train.loss[-2:].tolist() == [1.0, 1.0]
    assert (np.diff(curves.train.seconds) > 0).all()
    # Held-out loss was not measured again yet.
    assert curves.held_out.steps.tolist() == [50, 100]


def test_a_run_that_has_just_begun_has_empty_curves(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "new")
    assert len(read_metrics(folder).train) == 0
    (folder / "metrics.jsonl").unlink()
    assert len(read_metrics(folder).held_out) == 0


def test_a_loss_that_is_not_finite_is_kept(tmp_path: Path) -> None:
    losses = [1.0, math.nan, math.inf, None]
    lines = [train_line(step, loss=loss) for step, loss in enumerate(losses)]
    loss = read_metrics(write_run(tmp_path / "diverged", lines)).train.loss
    assert np.isfinite(loss).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (train_line(10, loss="low"), "line 3: loss is 'low', not a number"),
        (train_line(10, loss=True), "loss is True"),
        (train_line(10, loss=10**400), "loss is a value of type int"),
        (train_line(10, step=-1), "step is -1, not a whole number"),
        (train_line(10, step=1.5), "step is 1.5"),
        (train_line(10, tokens=2**63), "tokens is 9223372036854775808"),
        (train_line(10, seconds=math.nan), "seconds is nan"),
        (train_line(10, seconds=-1.0), "seconds is -1.0"),
        (eval_line(10, bits_per_byte=[1.0]), "bits_per_byte is a value of type list"),
        ({"kind": "train", "step": 1}, "tokens is missing"),
        ({"kind": "eval", "step": 1, "tokens": 1, "seconds": 1}, "loss is missing"),
        (train_line(10, tokens=None), "tokens is missing"),
        ({"kind": "train", "step": {}, "\x1b[31m": 1}, "step is a value of type dict"),
        ([1, 2], "line 3 is a value of type list"),
        (7, "line 3 is 7, not a JSON object"),
    ],
)
def test_lines_that_no_run_writes_are_refused(tmp_path: Path, line: Any, part: str) -> None:
    folder = write_run(tmp_path / "run", [train_line(1), train_line(2), line, train_line(11)])
    assert part in refused(read_metrics, folder)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"\x00\xff\xfe binary\n" * 9, "no line of JSON"),
        (b"[" * 60_000 + b"\n", "no line of JSON"),
        (b'{"kind": "' + b"x" * 70_000 + b'"}\n', "line 1 is longer than 65,536 bytes"),
    ],
)
def test_files_that_are_no_metrics_are_refused(tmp_path: Path, content: bytes, part: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_bytes(content)
    assert part in refused(read_metrics, folder)


def test_files_of_the_wrong_kind_or_size_are_refused(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", curve_lines(20))
    with (folder / "metrics.jsonl").open("ab") as file:
        file.truncate(300 * 2**20)  # of holes: it takes no room
    assert "314,572,800 bytes, more than the 268,435,456" in refused(read_metrics, folder)
    (folder / "metrics.jsonl").unlink()
    os.mkfifo(folder / "metrics.jsonl")
    assert "not a regular file" in refused(read_metrics, folder)
    (folder / "status.json").mkdir()
    assert "status.json" in refused(read_status, folder)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    for read in (read_metrics, read_status):
        assert "`bluejay runs`" in refused(read, tmp_path / "nothing")
        assert "no run.json" in refused(read, tmp_path)
        assert "There is no run" in refused(read, tmp_path / ("long" * 200))
    assert "There is no folder" in refused(find_runs, tmp_path / "nothing")


def test_a_status_is_what_was_written(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "tiny", name="tiny stories")
    written = write_status(folder, "interrupted", bits_per_byte=None, reason="SIGTERM")
    status = read_status(folder)
    assert (status.name, status.folder) == ("tiny stories", folder)
    for key in written.keys() - {"pid", "updated"}:
        assert getattr(status, key) == written[key]
    assert status.updated == datetime.fromisoformat(written["updated"])
    write_status(folder, "finished", updated="2026-01-02T03:04:05", more={"fields": 1})
    assert read_status(folder).updated == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"state": "sleeping"}, "state is 'sleeping', not running, interrupted"),
        ({"state": None}, "state is missing"),
        ({"step": "many"}, "step is 'many'"),
        ({"reason": 5}, "reason is 5, not a text"),
        ({"updated": "yesterday"}, "updated is 'yesterday'"),
        ({"seconds_left": math.nan}, "seconds_left is nan"),
        ({"tokens_per_second": {}}, "tokens_per_second is a value of type dict"),
    ],
)
def test_a_status_that_no_run_writes_is_refused(
    tmp_path: Path, changes: dict[str, Any], part: str
) -> None:
    folder = write_run(tmp_path / "run")
    write_status(folder, "finished", **changes)
    assert part in refused(read_status, folder)


def test_a_killed_run_is_told_from_a_running_one(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(folder / "lock")], stdout=subprocess.PIPE
    ) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"held\n"
            assert read_status(folder).state == "starting"
            write_status(folder, "running")
            assert read_status(folder).state == "running"
        finally:
            child.kill()
    assert child.returncode == -signal.SIGKILL
    status = read_status(folder)
    assert (status.state, status.step) == ("killed", 1137)
    # Who looks leaves the lock as it was: a resume takes it at once.
    with (folder / "lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    (folder / "lock").unlink()
    (folder / "status.json").unlink()
    assert (read_status(folder).state, read_status(folder).total_steps) == ("killed", 3000)
    write_status(folder, "finished")
    assert read_status(folder).state == "finished"


def test_runs_are_listed_newest_first_with_the_damaged(tmp_path: Path) -> None:
    for name, day in (("a", 1), ("b", 3), ("c", 2)):
        write_status(write_run(tmp_path / name), "finished", updated=f"2026-01-0{day}T00:00:00Z")
    write_run(tmp_path / ".hidden")
    (tmp_path / "not-a-run").mkdir()
    (tmp_path / "file").write_text("x")
    (write_run(tmp_path / "cut") / "run.json").write_text('{"name": "cu')
    runs = find_runs(tmp_path)
    assert [run.name for run in runs] == ["b", "c", "a", "cut"]
    assert [run.state for run in runs] == ["finished"] * 3 + ["damaged"]
    assert "run.json" in (runs[-1].reason or "")
    assert [run.name for run in find_runs(tmp_path / "a")] == ["a"]


def test_a_run_is_found_by_path_and_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs" / "tiny")
    assert find_run("tiny") == Path("runs/tiny")
    assert find_run("runs/tiny") == Path("runs/tiny")
    write_run(tmp_path / "tiny")
    assert find_run("tiny") == Path("tiny")
