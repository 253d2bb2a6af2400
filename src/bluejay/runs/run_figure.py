"""Draws the curves of runs. It imports matplotlib, so only `plotting` imports it, and late."""

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, Protocol

import matplotlib
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from bluejay.runs.run_history import Curve, RunCurves

# Okabe and Ito's colours, told apart with any kind of colour vision (jfly.uni-koeln.de/color),
# without the yellow, which is too light for a line on white.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_Dashes = Literal["-", "--", "-.", ":"]
_DASHES: tuple[_Dashes, ...] = ("-", "--", "-.", ":")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DARK, _GREY, _LIGHT = "#333333", "#777777", "#DDDDDD"

_SMOOTHING = 0.1
_SMOOTHING_WORDS = "train loss, exponential mean over the last 10 % of the run so far"
# Where tokens grow by more than this factor, most of a curve's fall lies in the first tenth.
_LOG_FROM = 10
# What happens in this first part of the time may leave the frame, or the rest would be a flat line.
_FALL = 0.02
_TOO_LARGE = 1e9
# With fewer points a line alone would hide where they are, and there is nothing to smooth.
_FEW_POINTS = 12
_MANY_POINTS = 60
_SCALE = 2
_DOTS_PER_INCH = 100

_STYLE: dict[Any, Any] = {
    "axes.edgecolor": _GREY,
    "axes.grid": True,
    "axes.labelcolor": _DARK,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.size": 10,
    "grid.color": _LIGHT,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": _DARK,
    # Texts stay texts: they can be searched, selected and read aloud.
    "svg.fonttype": "none",
    # Ids inside an SVG come from this in place of random bits.
    "svg.hashsalt": "bluejay",
    "xtick.color": _GREY,
    "xtick.labelcolor": _DARK,
    "ytick.color": _GREY,
    "ytick.labelcolor": _DARK,
}


@dataclass(frozen=True, kw_only=True)
class _Look:
    """How one run is drawn everywhere."""

    colour: str
    dashes: _Dashes
    marker: str


def rendered(
    runs: Sequence[RunCurves], labels: Sequence[str], against: str, file_format: str
) -> bytes:
    """The picture as a file of that format, "png" or "svg"."""
    file = BytesIO()
    # Without the time and the version, which would differ where nothing else does.
    metadata = {"Date": None} if file_format == "svg" else {"Software": None}
    with _own_style():
        figure = draw(runs, labels, against)
        figure.savefig(file, format=file_format, dpi=_SCALE * _DOTS_PER_INCH, metadata=metadata)
    return file.getvalue()


def draw(runs: Sequence[RunCurves], labels: Sequence[str], against: str) -> Figure:
    """A column of panels against tokens, time or each of them: loss, and bits per byte below where
    a run has any. The untrained model (no tokens, no time) is left out of the frame."""
    axes: list[_Axis] = [_TokenAxis(runs)] if against != "time" else []
    axes += [_TimeAxis(runs)] if against != "tokens" else []
    has_bits = any(np.isfinite(run.held_out.bits_per_byte).any() for run in runs)
    heights = [4.0, 1.9] if has_bits else [4.4]
    legend = _legend_entries(runs, labels, num_columns=len(axes))
    figure = Figure(
        figsize=(4 * len(axes) + 3.2, sum(heights) + 0.23 * len(legend) / len(axes)),
        dpi=_DOTS_PER_INCH,
        layout="constrained",
    )
    panels: NDArray[np.object_] = figure.subplots(
        len(heights), len(axes), squeeze=False, sharex="col", height_ratios=heights
    )
    for number, axis in enumerate(axes):
        _draw_losses(panels[0, number], axis, runs)
        if has_bits:
            _draw_bits(panels[1, number], axis, runs)
        axis.finish(panels[-1, number])
    panels[0, 0].set_ylabel("loss (nats per token)")
    if has_bits:
        panels[1, 0].set_ylabel("held-out loss\n(bits per byte)")
    figure.align_ylabels()
    _add_legend(figure, legend, num_columns=len(axes))
    return figure


def smoothed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """An exponential mean over the last 10 % of the values so far; gaps where they are not finite.

    A window that grows with the run smooths equally everywhere on a logarithmic axis, and lags
    nowhere behind the fast fall at its beginning.
    """
    result = np.full(len(values), np.nan)
    mean, num_seen = 0.0, 0
    for index, value in enumerate(values.tolist()):
        if math.isfinite(value):
            num_seen += 1
            mean += (value - mean) / max(1.0, _SMOOTHING * num_seen)
            result[index] = mean
    return result


class _Axis(Protocol):
    """What losses are drawn against; the frame is as high as what lies right of `frame_begin`."""

    frame_begin: float

    def of(self, curve: Curve) -> NDArray[np.float64]: ...

    def finish(self, panel: Axes) -> None: ...


class _TokenAxis:
    """Tokens to the right, on a logarithmic scale where they grow tenfold or more."""

    def __init__(self, runs: Sequence[RunCurves]) -> None:
        counts = [curve.tokens for run in runs for curve in (run.train, run.held_out)]
        positive = np.concatenate(counts)
        positive = positive[positive > 0]
        self.growth = float(positive.max() / positive.min()) if len(positive) else 1.0
        self.is_log = self.growth > _LOG_FROM
        self.frame_begin = 0.0

    def of(self, curve: Curve) -> NDArray[np.float64]:
        """Positions of the points; NaN for what a logarithm has no place for."""
        tokens = curve.tokens.astype(np.float64)
        return np.where(tokens > 0, tokens, np.nan) if self.is_log else tokens

    def finish(self, panel: Axes) -> None:
        """Scale, ticks and label."""
        if self.is_log:
            panel.set_xscale("log")
            multiples = (1.0, 2.0, 5.0) if self.growth < 2000 else (1.0,)
            panel.xaxis.set_major_locator(LogLocator(subs=multiples))
            panel.xaxis.set_minor_locator(NullLocator())
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: count_tick(value)))
        panel.set_xlabel("training tokens" + (" (logarithmic scale)" if self.is_log else ""))


class _TimeAxis:
    """Training time to the right, in the unit that gives small numbers."""

    def __init__(self, runs: Sequence[RunCurves]) -> None:
        times = [curve.seconds for run in runs for curve in (run.train, run.held_out)]
        longest = float(np.concatenate(times).max())
        self.unit, self.seconds = next(
            (unit, seconds)
            for unit, seconds, most in (
                ("seconds", 1, 180),
                ("minutes", 60, 3 * 3600),
                ("hours", 3600, 4 * 86400),
                ("days", 86400, math.inf),
            )
            if longest <= most
        )
        self.frame_begin = _FALL * longest / self.seconds

    def of(self, curve: Curve) -> NDArray[np.float64]:
        """Positions of the points."""
        return curve.seconds / self.seconds

    def finish(self, panel: Axes) -> None:
        """The label."""
        panel.set_xlabel(f"training time ({self.unit})")


def count_tick(value: float) -> str:
    """A count beside an axis: 500, 20k, 1.5M, 3B."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.4g}{unit}"
    return f"{value:.4g}"


def _look(index: int) -> _Look:
    return _Look(
        colour=_COLOURS[index % len(_COLOURS)],
        dashes=_DASHES[index // len(_COLOURS) % len(_DASHES)],
        marker=_MARKERS[index % len(_MARKERS)],
    )


def _draw_losses(panel: Axes, axis: _Axis, runs: Sequence[RunCurves]) -> None:
    for index, run in enumerate(runs):
        look, across, loss = _look(index), axis.of(run.train), _drawable(run.train.loss)
        dot = "." if len(loss) <= _FEW_POINTS else ""
        panel.plot(across, loss, color=look.colour, alpha=0.25, linewidth=0.8, zorder=2)
        panel.plot(
            across,
            smoothed(loss),
            color=look.colour,
            linestyle=look.dashes,
            linewidth=1.6,
            marker=dot,
            zorder=3,
        )
        _draw_points(panel, axis.of(run.held_out), run.held_out.loss, look)
    curves = [(curve, curve.loss) for run in runs for curve in (run.train, run.held_out)]
    _fit_height(panel, axis, curves)


def _draw_bits(panel: Axes, axis: _Axis, runs: Sequence[RunCurves]) -> None:
    for index, run in enumerate(runs):
        _draw_points(panel, axis.of(run.held_out), run.held_out.bits_per_byte, _look(index))
    _fit_height(panel, axis, [(run.held_out, run.held_out.bits_per_byte) for run in runs])


def _draw_points(
    panel: Axes, across: NDArray[np.float64], values: NDArray[np.float64], look: _Look
) -> None:
    is_dense = len(values) > _MANY_POINTS
    panel.plot(
        across,
        _drawable(values),
        color=look.colour,
        linewidth=0.7,
        marker=look.marker,
        markersize=2.5 if is_dense else 6,
        markeredgecolor="white",
        markeredgewidth=0 if is_dense else 0.8,
        zorder=4,
    )


def _fit_height(
    panel: Axes, axis: _Axis, curves: Sequence[tuple[Curve, NDArray[np.float64]]]
) -> None:
    """Frame what comes after the first fall, and the last point of every curve."""
    framed: list[NDArray[np.float64]] = []
    for curve, values in curves:
        seen = _drawable(values)
        is_seen = np.isfinite(seen)
        framed += [seen[is_seen & (axis.of(curve) > axis.frame_begin)], seen[is_seen][-1:]]
    heights = np.concatenate(framed)
    if len(heights):
        low, high = float(heights.min()), float(heights.max())
        margin = 0.05 * (high - low) or 0.5
        panel.set_ylim(low - margin, high + margin)


def _drawable(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """NaN, which leaves a gap, for what no picture can show."""
    return np.where(np.abs(values) < _TOO_LARGE, values, np.nan)


_Entry = tuple[Artist, str]


def _legend_entries(
    runs: Sequence[RunCurves], labels: Sequence[str], *, num_columns: int
) -> list[_Entry]:
    """The runs, then what the lines are; in two columns each begins a column of its own, if the
    runs fit beside the others."""
    entries: list[_Entry] = []
    for index, (run, label) in enumerate(zip(runs, labels, strict=True)):
        look = _look(index)
        is_empty = not len(run.train) + len(run.held_out)
        entries.append(
            (
                _line(look.colour, 1.6, linestyle=look.dashes, marker=look.marker),
                f"{label} (nothing measured yet)" if is_empty else label,
            )
        )
    kinds: list[_Entry] = []
    if any(len(run.train) > _FEW_POINTS for run in runs):
        kinds.append((_line(_GREY, 1.6), _SMOOTHING_WORDS))
        kinds.append((_line(_GREY, 0.8, alpha=0.4), "train loss as measured"))
    elif any(len(run.train) for run in runs):
        kinds.append((_line(_GREY, 1.6, marker="."), "train loss"))
    if any(len(run.held_out) for run in runs):
        kinds.append((_line(_GREY, 0.7, marker="o", markeredgecolor="white"), "held-out loss"))
    blanks = len(kinds) - len(entries) if num_columns == 2 else 0
    return entries + [(_line("none", 0.0), "")] * blanks + kinds


def _line(colour: str, width: float, **properties: Any) -> Line2D:
    return Line2D([], [], color=colour, linewidth=width, **properties)


def _add_legend(figure: Figure, entries: Sequence[_Entry], *, num_columns: int) -> None:
    """Below the panels, where it can cover no point."""
    handles, texts = zip(*entries, strict=True)
    legend = figure.legend(handles, texts, loc="outside lower left", ncols=num_columns)
    for text in legend.get_texts():
        text.set_parse_math(False)  # a dollar sign in a name is a dollar sign


@contextmanager
def _own_style() -> Iterator[None]:
    """Our style for the block, whatever the user's own settings of matplotlib are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A name in a script that the font lacks is drawn as boxes; an SVG has it right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield
