"""Pictures show the measurements, are the same bytes again, and appear whole or not at all."""

import math
import struct
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from numpy.typing import NDArray

from bluejay.core.errors import DataError, DiskError, UsageError
from bluejay.runs.plotting import Against, labels, plot_runs
from bluejay.runs.run_figure import count_tick, draw, smoothed
from bluejay.runs.run_history import RunCurves, read_metrics
from run_folders import curve_lines, eval_line, train_line, values, write_run


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_run(tmp_path / "tiny", curve_lines(3000), name="tiny stories, lr $3e-3$")


def drawn(panel: Axes) -> list[NDArray[np.float64]]:
    """The points of every line of a panel."""
    return [np.asarray(line.get_xydata(), np.float64) for line in panel.lines]


def panels_of(runs: list[RunCurves], against: Against) -> list[Axes]:
    return draw(runs, labels(runs), against).axes


def texts_of(svg: Path) -> str:
    return "\n".join(
        "".join(node.itertext()) for node in ET.parse(svg).iter() if "text" in node.tag
    )


def test_the_points_drawn_are_the_measurements(tiny: Path) -> None:
    lines = curve_lines(3000)
    loss_by_tokens, loss_by_time, bits_by_tokens, bits_by_time = panels_of(
        [read_metrics(tiny)], "both"
    )
    across = {
        kind: (values(lines, kind, "tokens"), np.array(values(lines, kind, "seconds")) / 60)
        for kind in ("train", "eval")
    }
    for number, panel in enumerate((loss_by_tokens, loss_by_time)):
        raw, smooth, held_out = drawn(panel)
        np.testing.assert_array_equal(raw[:, 0], across["train"][number])
        np.testing.assert_array_equal(raw[:, 1], values(lines, "train", "loss"))
        np.testing.assert_array_equal(smooth[:, 0], raw[:, 0])
        np.testing.assert_array_equal(smooth[:, 1], smoothed(raw[:, 1]))
        np.testing.assert_array_equal(held_out[:, 0], across["eval"][number])
        np.testing.assert_array_equal(held_out[:, 1], values(lines, "eval", "loss"))
    for number, panel in enumerate((bits_by_tokens, bits_by_time)):
        (points,) = drawn(panel)
        np.testing.assert_array_equal(points[:, 0], across["eval"][number])
        np.testing.assert_array_equal(points[:, 1], values(lines, "eval", "bits_per_byte"))
    assert loss_by_tokens.get_xscale() == "log"
    assert loss_by_time.get_xlabel() == ""
    assert bits_by_time.get_xlabel() == "training time (minutes)"


def test_every_point_after_the_first_fall_is_inside_the_frame(tiny: Path, tmp_path: Path) -> None:
    short = write_run(tmp_path / "short", [train_line(step) for step in (1, 2, 3)])
    runs = [read_metrics(tiny), read_metrics(short)]
    by_tokens, by_time, *_ = panels_of(runs, "both")
    low, high = by_tokens.get_ylim()
    for points in drawn(by_tokens):
        assert ((points[:, 1] > low) & (points[:, 1] < high)).all()
    low, high = by_time.get_ylim()
    for points in filter(len, drawn(by_time)):
        late = points[:, 0] > 0.02 * 3000 * 2.31 / 60
        assert ((points[late, 1] > low) & (points[late, 1] < high)).all()
        assert low < points[-1, 1] < high


def test_smoothing_is_an_exponential_mean_with_gaps() -> None:
    constant = np.full(300, 2.5)
    np.testing.assert_allclose(smoothed(constant), constant, rtol=1e-15, atol=0)
    few = np.array([8.0, 6.0, 5.0])
    np.testing.assert_array_equal(smoothed(few), few)
    noisy = 3.0 + np.random.default_rng(0).normal(0, 0.1, 2000)
    assert smoothed(noisy)[-500:].std() < 0.02
    holed = np.array([4.0, math.nan, math.inf, 4.0])
    np.testing.assert_array_equal(smoothed(holed), [4.0, math.nan, math.nan, 4.0])
    assert len(smoothed(np.empty(0))) == 0


def test_an_svg_is_the_same_bytes_again_and_its_texts_are_texts(tiny: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "other", curve_lines(1000), name="<other> & _co")
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    plot_runs([tiny, other], first)
    plot_runs([tiny, other], second)
    assert first.read_bytes() == second.read_bytes()
    texts = texts_of(first)
    for text in (
        "tiny stories, lr $3e-3$",
        "<other> & _co",
        "training tokens (logarithmic scale)",
        "training time (minutes)",
        "loss (nats per token)",
        "(bits per byte)",
        "exponential mean over the last 10 % of the run so far",
        "held-out loss",
        "1M",
    ):
        assert text in texts
    assert str(tmp_path) not in first.read_text()


def test_a_png_has_two_pixels_for_each_point(tiny: Path, tmp_path: Path) -> None:
    picture = tmp_path / "new" / "folder" / "loss.PNG"
    for against, columns in (("tokens", 1440), ("time", 1440), ("both", 2240)):
        plot_runs([tiny], picture, against=against)
        content = picture.read_bytes()
        assert content.startswith(b"\x89PNG\r\n\x1a\n")
        assert struct.unpack(">I", content[16:20]) == (columns,)
        plot_runs([tiny], picture, against=against)
        assert picture.read_bytes() == content
    assert [path.name for path in picture.parent.iterdir()] == ["loss.PNG"]


def test_few_points_diverged_ones_and_none(tmp_path: Path) -> None:
    few = write_run(tmp_path / "few", [train_line(step) for step in (1, 2, 3)])
    diverged = write_run(
        tmp_path / "diverged",
        [
            eval_line(0),
            *(train_line(step, loss=math.nan if step > 200 else 1e300) for step in range(100, 400)),
            eval_line(400, loss=math.inf, bits_per_byte=None),
        ],
    )
    empty = write_run(tmp_path / "empty", name="語 empty")
    svg = tmp_path / "all.svg"
    runs = plot_runs([few, diverged, empty], svg)
    assert [run.name for run in runs] == ["few", "diverged", "語 empty"]
    assert "語 empty (nothing measured yet)" in texts_of(svg)
    (panel, *_) = panels_of([read_metrics(few)], "tokens")
    assert panel.get_xscale() == "linear"
    assert panel.lines[1].get_marker() == "."
    for sparse in (few, diverged):
        plot_runs([sparse], tmp_path / "one.png")
    with pytest.raises(DataError, match="no measurements yet"):
        plot_runs([empty], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_two_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [
        read_metrics(write_run(tmp_path / folder, curve_lines(100), name=name))
        for folder, name in (("a", "same"), ("b", "same"), ("c", "x\n\x1b" + "y" * 90))
    ]
    first, second, third = labels(runs)
    assert first.endswith("/a")
    assert second.endswith("/b")
    assert third.isprintable()
    assert len(third) == 48


@pytest.mark.parametrize(
    ("name", "part"), [("loss.pdf", "end it in .png or .svg"), ("loss", "no kind of picture")]
)
def test_other_formats_are_refused(tiny: Path, tmp_path: Path, name: str, part: str) -> None:
    with pytest.raises(UsageError, match=part):
        plot_runs([tiny], tmp_path / name)


def test_places_that_cannot_be_written_are_told(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(DiskError, match="cannot be written"):
        plot_runs([tiny], tmp_path / "file" / "loss.svg")
    (tmp_path / "folder.svg").mkdir()
    with pytest.raises(UsageError, match="is a folder"):
        plot_runs([tiny], tmp_path / "folder.svg")
    with pytest.raises(UsageError, match="1 to 28 runs, not 29"):
        plot_runs([tiny] * 29, tmp_path / "many.svg")
    assert not list(tmp_path.glob(".*partial*"))


def test_without_matplotlib_the_remedy_is_told(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "bluejay.runs.run_figure")
    with pytest.raises(UsageError, match=r"matplotlib.*bluejay\[train\]"):
        plot_runs([tiny], tmp_path / "loss.png")


def test_counts_beside_an_axis_are_short() -> None:
    counts = [0, 500, 1000, 20_000, 1_500_000, 3e9, 2e12]
    assert list(map(count_tick, counts)) == ["0", "500", "1k", "20k", "1.5M", "3B", "2T"]
