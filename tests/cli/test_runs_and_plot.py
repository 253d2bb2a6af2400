"""`bluejay runs` and `bluejay plot` as a shell and a terminal meet them."""

import json
import os
import pty
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bluejay.cli.runs import age, count_words
from bluejay.cli.terminal import display_width
from run_folders import curve_lines, write_run, write_status

BLUEJAY = [sys.executable, "-m", "bluejay"]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with two runs under `runs`, and a damaged one."""
    tiny = write_run(tmp_path / "runs" / "tiny", curve_lines(3000))
    ago = datetime.now(UTC) - timedelta(minutes=3, seconds=5)
    write_status(tiny, "running", updated=ago.isoformat())  # by a process that is gone
    wide = write_run(tmp_path / "runs" / "wide", curve_lines(1000), end='{"kind"\n')
    write_status(
        wide,
        "failed",
        reason="The loss is\x1b[2J not finite.",
        loss=float("nan"),
        bits_per_byte=None,
        updated="2026-01-01T00:00:00Z",
    )
    (write_run(tmp_path / "runs" / "cut") / "status.json").write_text('{"state": ')
    return tmp_path


def bluejay(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BLUEJAY, *arguments], capture_output=True, text=True, cwd=cwd, timeout=120, check=False
    )


def refused(*arguments: str, cwd: Path, code: int) -> str:
    """The one sentence on stderr of a command that must fail with `code`."""
    done = bluejay(*arguments, cwd=cwd)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("bluejay: ")]
    assert "defect" not in line
    return line


def on_terminal(*arguments: str, cwd: Path, columns: int) -> list[str]:
    """The lines that a terminal of so many columns is sent."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"COLUMNS": str(columns), "NO_COLOR": "1"}
    with subprocess.Popen(
        [*BLUEJAY, *arguments], stdout=theirs, stderr=theirs, cwd=cwd, env=environment
    ) as child:
        os.close(theirs)
        text = b""
        while piece := _read(ours):
            text += piece
    os.close(ours)
    assert child.returncode == 0
    return text.decode().replace("\r\n", "\n").splitlines()


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # how Linux tells that the other side is closed
        return b""


def test_runs_lists_how_far_each_is(home: Path) -> None:
    done = bluejay("runs", cwd=home)
    assert done.returncode == 0, done.stderr
    header, tiny, wide, cut, blank, *reasons = done.stdout.splitlines()
    for name in ("state", "step", "tokens", "loss", "bits/byte", "tokens/s", "used", "left"):
        assert name in header.split()
    for part in ("tiny", "killed", "1,137/3,000", "4.66M", "3.204", "1.810", "1.77k"):
        assert part in tiny.split()
    assert "43 min 51 s" in tiny
    assert "1 h 11 min" in tiny
    assert tiny.endswith("3 min ago")
    assert wide.split()[:2] == ["wide", "failed"]
    assert wide.endswith("days ago")
    assert cut.split() == ["cut", "damaged", *["-"] * 8]
    assert blank == ""
    assert reasons[0] == r"wide: The loss is\x1b[2J not finite."
    assert "status.json: its JSON cannot be read" in reasons[1]
    assert "\x1b" not in done.stdout


def test_runs_json_is_one_object(home: Path) -> None:
    document = json.loads(bluejay("runs", "runs", "--json", cwd=home).stdout)
    tiny, wide, cut = document["runs"]
    assert document["folder"] == "runs"
    assert (tiny["name"], tiny["state"], tiny["step"]) == ("tiny", "killed", 1137)
    assert (wide["loss"], wide["bits_per_byte"]) == (None, None)
    assert wide["updated"] == "2026-01-01T00:00:00+00:00"
    assert cut["state"] == "damaged"


@pytest.mark.parametrize("columns", [24, 40, 80, 140])
def test_runs_fits_the_terminal(home: Path, columns: int) -> None:
    lines = on_terminal("runs", cwd=home, columns=columns)
    assert max(map(display_width, lines)) <= columns
    assert "1,137/3,000" in "\n".join(lines)
    assert "`bluejay resume runs/tiny`" in " ".join(lines)


def test_without_runs_there_is_a_hint_and_no_error(tmp_path: Path) -> None:
    done = bluejay("runs", cwd=tmp_path)
    assert done.returncode == 0
    assert "bluejay train my.txt" in done.stdout
    assert json.loads(bluejay("runs", ".", "--json", cwd=tmp_path).stdout)["runs"] == []
    assert "There is no folder nothing" in refused("runs", "nothing", cwd=tmp_path, code=3)


def test_plot_writes_into_the_run_and_tells_its_numbers(home: Path) -> None:
    done = bluejay("plot", "tiny", cwd=home)
    assert done.returncode == 0, done.stderr
    summary, place = done.stdout.splitlines()
    assert summary.startswith("tiny: loss 3.0")
    assert "bits per byte, 12.3M tokens, step 3,000" in summary
    assert place == "The picture is runs/tiny/loss.png"
    assert (home / "runs/tiny/loss.png").read_bytes().startswith(b"\x89PNG")


def test_plot_compares_runs_and_tells_of_cut_lines(home: Path) -> None:
    arguments = ["plot", "runs/tiny", "wide", "tiny", "--against", "tokens"]
    done = bluejay(*arguments, cwd=home)
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()[:2]] == ["tiny", "wide"]
    assert "1 line was cut short in runs/wide/metrics.jsonl" in done.stderr
    assert (home / "runs/tiny/comparison.png").is_file()
    for name in ("a.svg", "b.svg"):
        assert bluejay(*arguments, "-o", name, cwd=home).returncode == 0
    assert (home / "a.svg").read_bytes() == (home / "b.svg").read_bytes()


def test_mistakes_get_one_sentence(home: Path) -> None:
    write_run(home / "runs" / "new")
    (home / "runs/cut/metrics.jsonl").write_text('{"kind": "train", "step": "x"}\n')
    assert "bluejay runs" in refused("plot", "no-such-run", cwd=home, code=3)
    assert "no run.json" in refused("plot", "runs", cwd=home, code=3)
    assert "no measurements yet" in refused("plot", "new", cwd=home, code=3)
    assert "step is 'x'" in refused("plot", "cut", cwd=home, code=3)
    assert "RUN" in refused("plot", cwd=home, code=2)
    assert ".png or .svg" in refused("plot", "tiny", "-o", "x.gif", cwd=home, code=2)
    assert "perhaps time" in refused("plot", "tiny", "--against", "tim", cwd=home, code=2)
    (home / "file").write_text("x")
    assert "cannot be written" in refused("plot", "tiny", "-o", "file/x.png", cwd=home, code=6)


def test_times_and_counts_are_words() -> None:
    seconds = [-3600.0, 0, 40, 60, 3599, 3600, 47.9 * 3600, 48 * 3600, 12.5 * 86400]
    assert list(map(age, seconds)) == [
        *("just now", "just now", "40 s ago", "1 min ago", "59 min ago", "1 h ago"),
        *("47 h ago", "2 days ago", "12 days ago"),
    ]
    counts = [0, 950, 999.6, 40_960, 12_288_000, 999_900_000, 1.5e12]
    assert list(map(count_words, counts)) == ["0", "950", "1k", "41k", "12.3M", "1B", "1.5T"]
