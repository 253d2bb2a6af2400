"""Bars of tokens per second, Bluejay beside its peers, from the readings of decode_peers.py.

    python benchmarks/plot_peers.py results.json [more.json ...] --to docs/results/peers.svg

One row of panels per file (a shape), one panel per kind of work; bars are medians, whiskers the
smallest and largest reading. The number over a peer's bar is how many times faster Bluejay is with
weights of the same bits: below 1, where the peer is faster, it is red.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from peers.comparison import Measure, measures_of, medians, ratios

PANELS = {0: "decoding, tokens per second", 1: "prompt, tokens per second"}
OURS = ("#0b4f9c", "#3f86d6", "#83b4ea", "#bcd6f4")
THEIRS = ("#555555", "#8a8a8a", "#b3b3b3", "#d0d0d0", "#707070", "#9d9d9d", "#c2c2c2")
LOSS = "#c0392b"


def extremes(record: Mapping[str, Any], side: str, measure: Measure) -> tuple[float, float]:
    values = [
        value
        for reading in record["readings"]
        if reading.get("side") == side
        for found, value in measures_of(reading)
        if found == measure
    ]
    return min(values), max(values)


def colors(record: Mapping[str, Any], names: list[str]) -> dict[str, str]:
    ours = {side["name"] for side in record["sides"] if side["ours"]}
    left = {True: iter(OURS), False: iter(THEIRS)}
    return {name: next(left[name in ours], "#eeeeee") for name in names}


def draw(axes: Axes, record: Mapping[str, Any], kind: int) -> None:
    found = medians(record)
    columns = sorted({m for values in found.values() for m in values if m.order == kind})
    better = {
        (peer, measure): ratio
        for (_, peer), values in ratios(record).items()
        for measure, ratio in values.items()
    }
    width = 0.85 / max(1, len(found))
    chosen = colors(record, list(found))
    for number, (side, values) in enumerate(found.items()):
        for place, measure in enumerate(columns):
            if measure not in values:
                continue
            x, height = place + (number - (len(found) - 1) / 2) * width, values[measure]
            low, high = extremes(record, side, measure)
            label = side if place == 0 else None
            axes.bar(x, height, width * 0.92, color=chosen[side], label=label)
            axes.vlines(x, low, high, color="black", linewidth=0.6)
            ratio = better.get((side, measure))
            if ratio is not None:
                color = LOSS if ratio < 1 else "black"
                text = f"{ratio:.2f}×"
                axes.annotate(
                    text,
                    (x, high),
                    (0, 2),
                    textcoords="offset points",
                    ha="center",
                    fontsize=6,
                    color=color,
                )
    axes.set_xticks(range(len(columns)), [m.label.removeprefix("decode, ") for m in columns])
    axes.tick_params(labelsize=8)
    axes.set_title(f"{record['label']}: {PANELS[kind]}", fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--to", type=Path, required=True, help="a .svg or .png file")
    given = parser.parse_args()
    records = [json.loads(path.read_text()) for path in given.results]
    # Text stays text, and no date or random id makes two drawings of the same readings differ.
    plt.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "bluejay", "font.size": 8}
    size = (11, 3.4 * len(records))
    figure, grid = plt.subplots(len(records), len(PANELS), figsize=size, squeeze=False)
    for row, record in zip(grid, records, strict=True):
        for axes, kind in zip(row, PANELS, strict=True):
            draw(axes, record, kind)
        row[0].legend(fontsize=7, frameon=False)
    machine = records[0]["machine"]
    about = f"{records[0]['date']}, {machine['processor']}, {machine['cores']} cores"
    figure.text(0.01, 0.005, about, fontsize=7, color="#555555")
    figure.tight_layout(rect=(0, 0.02, 1, 1))
    given.to.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"Date": None} if given.to.suffix == ".svg" else {}
    figure.savefig(given.to, dpi=160, metadata=metadata)


if __name__ == "__main__":
    main()
