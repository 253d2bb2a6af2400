"""Readings of decode_peers.py as medians and ratios, and those as Markdown.

A record is the JSON that decode_peers.py writes. A measure is what one column of the report holds.
"""

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, order=True)
class Measure:
    """`order` and `sub` sort the columns; `more_is_better` is true of rates."""

    order: int
    sub: tuple[int, ...]
    label: str
    more_is_better: bool


def measures_of(reading: Mapping[str, Any]) -> list[tuple[Measure, float]]:
    """What a reading says, in the report's terms."""
    what = reading["what"]
    if what == "decode":
        batch, context = int(reading["batch"]), int(reading["context"])
        label = f"decode, batch {batch}" + (f", context {context}" if context else "")
        return [(Measure(0, (context, batch), label, True), reading["tokens_per_s"])]
    if what == "prefill":
        prompt = int(reading["prompt"])
        return [(Measure(1, (prompt,), f"prompt {prompt}", True), reading["tokens_per_s"])]
    if what == "load" and reading["state"] == "warm":
        return [(Measure(2, (0,), "load, s", False), reading["seconds"])]
    if what == "first_token":
        state = reading["state"]
        place = ("cold", "warm").index(state)
        return [(Measure(3, (place,), f"first token, {state}, s", False), reading["seconds"])]
    if what == "memory":
        resident = Measure(4, (0,), "resident, MB", False)
        anonymous = Measure(4, (1,), "anonymous, MB", False)
        return [(resident, reading["resident_mb"]), (anonymous, reading["anonymous_mb"])]
    return []


def medians(record: Mapping[str, Any]) -> dict[str, dict[Measure, float]]:
    """Side -> measure -> median over the rounds, sides in the order of the record."""
    values: dict[str, dict[Measure, list[float]]] = {s["name"]: {} for s in record["sides"]}
    for reading in record["readings"]:
        for measure, value in measures_of(reading):
            values[reading["side"]].setdefault(measure, []).append(value)
    return {
        side: {measure: statistics.median(found) for measure, found in by_measure.items()}
        for side, by_measure in values.items()
        if by_measure
    }


def ratios(record: Mapping[str, Any]) -> dict[tuple[str, str], dict[Measure, float]]:
    """(our side, peer of the same bits) -> measure -> how many times better ours is.

    Rates are ours over the peer's, seconds and memory the peer's over ours: below 1 is a loss.
    """
    found = medians(record)
    about = {side["name"]: side for side in record["sides"]}
    pairs = {}
    for ours in found:
        for peer in found:
            same = about[ours]["bits"] == about[peer]["bits"]
            if about[ours]["ours"] and not about[peer]["ours"] and same:
                shared = [measure for measure in found[ours] if measure in found[peer]]
                pairs[ours, peer] = {m: _better(found[ours][m], found[peer][m], m) for m in shared}
    return pairs


def _better(ours: float, peers: float, measure: Measure) -> float:
    return ours / peers if measure.more_is_better else peers / ours


def report(record: Mapping[str, Any]) -> str:
    """Date, machine, yardsticks, the medians and the ratios."""
    machine, found = record["machine"], medians(record)
    columns = sorted({measure for by_measure in found.values() for measure in by_measure})
    sets = ", ".join(machine["instruction_sets"])
    where = f"{machine['processor']}, {machine['cores']} cores, {sets}"
    lines = [
        f"{record['label']}: {record['date']}, {where}",
        _yardsticks(record),
        "",
        *_table("median", {side: found[side] for side in found}, columns, _number),
        "",
    ]
    pairs = {f"{ours} : {peer}": values for (ours, peer), values in ratios(record).items()}
    if pairs:
        lines += ["Times better (rates ours : theirs, seconds and memory theirs : ours):", ""]
        lines += [*_table("ratio", pairs, columns, lambda value: f"{value:.2f}"), ""]
    versions = {
        reading["side"]: reading["version"]
        for reading in record["readings"]
        if "side" in reading and reading.get("version")
    }
    return "\n".join([*lines, "; ".join(f"{side}: {text}" for side, text in versions.items())])


def _yardsticks(record: Mapping[str, Any]) -> str:
    found = [reading for reading in record["readings"] if reading["what"] == "yardsticks"]
    read = [reading["read_gb_s"] for reading in found]
    product = [reading["product_gflop_s"] for reading in found]
    return (
        f"{len(found)} rounds; read bandwidth {statistics.median(read):.1f} GB/s "
        f"({min(read):.1f} to {max(read):.1f}), float32 product {statistics.median(product):.0f} "
        f"GFLOP/s ({min(product):.0f} to {max(product):.0f})"
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _table(
    title: str,
    rows: Mapping[str, Mapping[Any, float]],
    columns: Sequence[Any],
    write: Callable[[float], str],
) -> Iterator[str]:
    yield f"| {title} | " + " | ".join(measure.label for measure in columns) + " |"
    yield "|---|" + "---:|" * len(columns)
    for name, values in rows.items():
        cells = [write(values[m]) if m in values else "–" for m in columns]
        yield f"| {name} | " + " | ".join(cells) + " |"
