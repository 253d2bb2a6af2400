"""Figures of a load, and their table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from serve_load import Load
from serve_replies import Outcome

PERCENTS = (50, 95, 99)


@dataclass(frozen=True, kw_only=True)
class Check:
    """One promise: None is one that could not be judged, and `said` why."""

    name: str
    passed: bool | None
    said: str


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one mode found."""

    mode: str
    title: str
    checks: tuple[Check, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Nothing failed, and something was judged."""
        judged = [check.passed for check in self.checks if check.passed is not None]
        return bool(judged) and all(judged)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"passed": self.passed}


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The smallest value that `percent` % of them do not exceed; None of no values."""
    if not values:
        return None
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * percent // 100))
    return ordered[int(rank) - 1]


def percentiles(values: Sequence[float]) -> dict[str, float | None]:
    """p50, p95, p99 and the largest, in ms, of seconds."""
    found = {f"p{percent}": percentile(values, percent) for percent in PERCENTS}
    found["max"] = max(values, default=None)
    return {name: None if x is None else round(1000 * x, 2) for name, x in found.items()}


def first_token_times(outcomes: Sequence[Outcome]) -> list[float]:
    return [
        o.first_token_seconds for o in outcomes if o.is_ok and o.first_token_seconds is not None
    ]


def token_gaps(outcomes: Sequence[Outcome]) -> list[float]:
    return [gap for outcome in outcomes if outcome.is_ok for gap in outcome.gaps]


def figures(load: Load) -> dict[str, Any]:
    """Rates, times in ms, errors by kind, and what the generator took of one core."""
    outcomes, seconds = load.outcomes, load.seconds
    good = [outcome for outcome in outcomes if outcome.is_ok]
    tokens = sum(outcome.tokens_between(load.began, load.ended) for outcome in outcomes)
    chunks = sum(len(outcome.arrivals) for outcome in good)
    streamed_tokens = sum(outcome.output_tokens for outcome in good if outcome.arrivals)
    return {
        "seconds": round(seconds, 3),
        "requests": len(outcomes),
        "ok": len(good),
        "errors": dict(sorted(Counter(o.kind for o in outcomes if not o.is_ok).items())),
        "requests_per_second": round(sum(o.ended <= load.ended for o in good) / seconds, 3),
        "output_tokens_per_second": round(tokens / seconds, 2),
        "prompt_tokens": sum(outcome.prompt_tokens for outcome in good),
        "output_tokens": sum(outcome.output_tokens for outcome in good),
        "tokens_per_chunk": round(streamed_tokens / chunks, 3) if chunks else None,
        "first_token_ms": percentiles(first_token_times(outcomes)),
        "between_tokens_ms": percentiles(token_gaps(outcomes)),
        "whole_ms": percentiles([outcome.seconds for outcome in good]),
        "generator": {
            "cpu_seconds": round(load.cpu_seconds, 3),
            "share_of_a_core": round(load.cpu_seconds / max(seconds, 1e-9), 3),
            "late_ms": percentiles(load.lags),
        },
    }


def load_table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A Markdown table of figures, a line for each load."""
    header = (
        "| load | requests | ok | errors | requests/s | tokens/s | first token ms p50/p95/p99 "
        "| between tokens ms p50/p95/p99 | generator's CPU |"
    )
    lines = [header, "|---|---:|---:|---|---:|---:|---:|---:|---:|"]
    for name, row in rows.items():
        errors = ", ".join(f"{num} {kind}" for kind, num in row["errors"].items()) or "none"
        lines.append(
            f"| {name} | {row['requests']} | {row['ok']} | {errors} "
            f"| {row['requests_per_second']:.2f} | {row['output_tokens_per_second']:.1f} "
            f"| {_three(row['first_token_ms'])} | {_three(row['between_tokens_ms'])} "
            f"| {row['generator']['share_of_a_core']:.0%} |"
        )
    return "\n".join(lines)


def verdict_table(verdicts: Sequence[Verdict]) -> str:
    """A Markdown table of modes: pass or fail, and every check with its figures."""
    lines = ["| mode | result | checks |", "|---|---|---|"]
    for verdict in verdicts:
        marks = {True: "pass", False: "**FAIL**", None: "not judged"}
        checks = "; ".join(f"{marks[c.passed]}: {c.name} ({c.said})" for c in verdict.checks)
        result = "pass" if verdict.passed else "**FAIL**"
        lines.append(f"| {verdict.mode} {verdict.title} | {result} | {checks} |")
    return "\n".join(lines)


def _three(values: Mapping[str, float | None]) -> str:
    found = [values[f"p{percent}"] for percent in PERCENTS]
    return "-" if None in found else " / ".join(f"{value:.1f}" for value in found)
