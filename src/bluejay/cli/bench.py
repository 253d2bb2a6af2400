"""`bluejay bench`: how fast a model runs here, against what the memory allows."""

from __future__ import annotations

import argparse
import json
import sys
import time
from typing import TYPE_CHECKING

from bluejay.cli.loading import (
    add_model_place,
    add_running_arguments,
    announce_compiling,
    load_model,
)
from bluejay.cli.parser import CommandParser, whole_number
from bluejay.cli.status import Status, size_words, status
from bluejay.cli.table import print_table, print_text
from bluejay.cli.terminal import is_terminal, styled

if TYPE_CHECKING:
    from collections.abc import Callable

    from bluejay.runs.bench_report import BenchReport, DecodeReading


def add_arguments(parser: CommandParser) -> None:
    """The options of `bluejay bench`."""
    add_model_place(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    group = parser.add_argument_group("what to measure")
    deep = "tokens before the first new one; 0 with every batch, others with the first"
    for option, default, what in (
        ("--batch", "1,4,8,16", "rows that are decoded together"),
        ("--prompt", "128,512,2048", "tokens of prompts"),
        ("--context", "0,1900", deep),
    ):
        group.add_argument(
            option,
            metavar="N,N",
            type=_numbers,
            default=default,
            help=f"{what} (default: {default})",
        )
    for option, number, what in (
        ("--tokens", 64, "new tokens of each row"),
        ("--repeat", 3, "readings, of which the median counts"),
    ):
        words = f"{what} (default: {number})"
        group.add_argument(option, metavar="N", type=whole_number, default=number, help=words)
    add_running_arguments(parser.add_argument_group("model"))


def run(arguments: argparse.Namespace) -> None:
    """Load the model, measure, and print a report."""
    from bluejay.runs.bench_plan import BenchPlan

    plan = BenchPlan(
        batches=arguments.batch,
        prompts=arguments.prompt,
        contexts=arguments.context,
        tokens=arguments.tokens,
        repeat=arguments.repeat,
    )
    with status() as shown:
        shown.say("Starting")
        import jax

        from bluejay.runs.bench import SAMPLING, measure

        begun = time.perf_counter()
        model, name = load_model(arguments, shown, choice="MODEL")
        jax.block_until_ready(model.runner.params)
        load_seconds = time.perf_counter() - begun
        plan, left_out = plan.fitted(model.config.context_length)
        for sentence in left_out:
            shown.note(sentence)
        announce_compiling(shown, "Warming up")
        report = measure(model, plan, name=name, load_seconds=load_seconds, on_stage=_stages(shown))
    if arguments.json:
        print(json.dumps(report.document(SAMPLING), ensure_ascii=False, indent=2))
        return
    _print_report(report)


def _numbers(text: str) -> tuple[int, ...]:
    """For `type=`: whole numbers with commas between."""
    return tuple(whole_number(part.strip()) for part in text.split(",") if part.strip())


def _stages(shown: Status) -> Callable[[str, str], None]:
    """Where a person looks on, every case is named; a log gets a line for each round."""
    if is_terminal(sys.stderr):
        return lambda stage, case: shown.say(f"{stage}: {case}")
    return lambda stage, _: shown.say(stage)


def _print_report(report: BenchReport) -> None:
    setting = report.setting
    print(styled(setting.model, "bold"))
    rows = [["kernels", setting.kernels], ["cache", setting.cache_dtype]]
    print_table(rows, flexible=1, indent="  ")
    print()
    _print_decoding(report)
    if report.prefill:
        print()
        _print_prompts(report)
    print()
    _print_limit(report)
    print()
    _print_start(report)


def _print_decoding(report: BenchReport) -> None:
    """Columns of which nothing is known, without native kernels, are left out."""
    print(styled(f"Decoding, {report.setting.tokens} tokens a row", "bold"))
    header = ["rows", "context", "choice", "tokens/s", "ms a step", "cost"]
    has_kernels = report.first.kernel_seconds is not None
    if has_kernels:
        header += ["in kernels", "outside", "GB/s", "of the limit"]
    readings = [(reading, "greedy") for reading in report.decode]
    readings.append((report.sampled, "drawn"))
    rows = []
    for reading, choice in readings:
        cost = report.cost(reading)
        case = reading.case
        row = [str(case.batch), f"{case.context:,}", choice, _figure(reading.tokens_per_second)]
        row += [f"{1e3 * reading.seconds:.2f}", "" if cost is None else f"{cost:.2f}"]
        rows.append(row + (_kernel_cells(report, reading) if has_kernels else []))
    print_table(rows, header=header, right=[0, 1, *range(3, len(header))], indent="  ")


def _kernel_cells(report: BenchReport, reading: DecodeReading) -> list[str]:
    inside = reading.kernel_seconds or 0.0
    share = report.share_of_limit(reading)
    return [
        f"{1e3 * inside:.2f}",
        f"{1e3 * (reading.seconds - inside):.2f}",
        f"{reading.num_bytes / reading.seconds / 1e9:.1f}",
        "" if share is None else f"{share:.0%}",
    ]


def _print_prompts(report: BenchReport) -> None:
    print(styled("Prompts", "bold"))
    rows = [
        [f"{item.prompt:,}", _figure(item.prompt / item.seconds), f"{item.seconds:.2f}"]
        for item in report.prefill
    ]
    print_table(rows, header=["tokens", "tokens/s", "seconds"], right=[0, 1, 2], indent="  ")


def _print_limit(report: BenchReport) -> None:
    first = report.first
    print(styled("The limit", "bold"))
    rows = [["a step reads", f"{size_words(first.num_bytes)} of weights, keys and values"]]
    if report.bandwidth is not None:
        steps = report.bandwidth / first.num_bytes
        rows.append(["memory gives", f"{report.bandwidth / 1e9:.1f} GB/s (measured in between)"])
        rows.append(["so at most", f"{_figure(first.case.batch * steps)} tokens/s"])
    if report.predicted_seconds is not None and first.case.batch == 1:
        predicted = _figure(1 / report.predicted_seconds)
        rows.append(["doctor predicts", f"{predicted} tokens/s at that bandwidth"])
    print_table(rows, flexible=1, indent="  ")


def _print_start(report: BenchReport) -> None:
    start = report.start
    print(styled("Start", "bold"))
    rows = [["loading", f"{start.load_seconds:.2f} s"]]
    if start.first_token_seconds is not None:
        seconds = f"{start.first_token_seconds:.2f} s after the process began"
        rows.append(["first token", seconds])
    if start.peak_resident is not None and start.peak_anonymous is not None:
        sizes = [size_words(start.peak_resident), size_words(start.peak_anonymous)]
        widest = max(reading.case.batch for reading in report.decode)
        what = f"all of the above, {widest} rows" if widest > 1 else "all of the above"
        rows.append(["peak memory", f"{sizes[0]} for {what}; {sizes[1]} of it anonymous"])
    print_table(rows, flexible=1, indent="  ")
    note = "cost: a step's time over that of one row."
    if report.bandwidth is not None:
        note += " of the limit: the bytes read per second over what memory gives."
    print_text(note, style="dim")


def _figure(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 10 else f"{rate:.2f}"
