"""`bluejay doctor`: what this machine can run, in numbers."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from bluejay.cli.parser import CommandParser
from bluejay.cli.status import size_words, status
from bluejay.cli.table import print_table, print_text
from bluejay.cli.terminal import styled

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bluejay.runs.doctor import Machine, Prediction, Verdict


def add_arguments(parser: CommandParser) -> None:
    """The options of `bluejay doctor`."""
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> None:
    """Look at the machine, measure how fast it reads memory, and judge models and presets."""
    with status() as shown:
        shown.say("Looking at this machine")
        from bluejay.runs.doctor import (
            FINE_TUNE_FORMULA,
            judge,
            look_at_machine,
            predict,
            read_rates,
        )
        from bluejay.runs.read_bandwidth import SHORT_YARDSTICK_BYTES, yardstick

        machine = look_at_machine()
        shown.say("Measuring how fast it reads weights")
        rates = read_rates()
        verdicts = judge(machine, rates)
        limit = yardstick(SHORT_YARDSTICK_BYTES)
        bandwidth = None if limit is None else limit.bytes_per_second()
        predictions = [] if bandwidth is None else predict(machine, bandwidth)
    if arguments.json:
        document = {
            "machine": asdict(machine),
            "read_bytes_per_second": rates,
            "memory_bytes_per_second": bandwidth,
            "predictions": [asdict(prediction) for prediction in predictions],
            "presets": [asdict(verdict) for verdict in verdicts],
            "fine_tune_formula": FINE_TUNE_FORMULA,
        }
        print(json.dumps(document, default=str, ensure_ascii=False, indent=2))
        return
    _print_machine(machine, rates, bandwidth)
    print()
    if predictions:
        _print_predictions(predictions)
        print()
    _print_verdicts(verdicts)
    print()
    _print_notes(FINE_TUNE_FORMULA)


def _print_machine(machine: Machine, rates: Mapping[str, float], bandwidth: float | None) -> None:
    cores = f"{machine.num_usable_cores} cores"
    if machine.num_usable_cores != machine.num_cores:
        cores += f" of {machine.num_cores}"
    memory = f"{size_words(machine.memory_free)} free of {size_words(machine.memory_total)}"
    if machine.device_memory:
        memory += f"; on the device {size_words(machine.device_memory)} free"
    speeds = ", ".join(f"{size_words(int(rate))}/s {dtype}" for dtype, rate in rates.items())
    kept = f"{machine.compile_cache} ({size_words(machine.compile_cache_bytes)})"
    rows = [
        ["processor", f"{machine.processor}, {cores}"],
        ["instructions", " ".join(machine.instruction_sets) or "unknown"],
        ["kernels", machine.kernels],
        ["memory", memory],
        ["disk", f"{size_words(machine.disk_free)} free at {machine.cache_folder}"],
        ["devices", ", ".join(machine.devices)],
        *(
            []
            if bandwidth is None
            else [["reads memory", f"{size_words(int(bandwidth))}/s (measured)"]]
        ),
        ["reads weights", f"{speeds} in XLA's products (measured)"],
        ["versions", ", ".join(f"{name} {found}" for name, found in machine.versions.items())],
        ["system", machine.system],
        ["compiled", kept],
    ]
    print(styled("This machine", "bold"))
    print_table(rows, flexible=1, indent="  ")


def _print_predictions(predictions: list[Prediction]) -> None:
    print(styled("What decoding comes to, with native kernels", "bold"))
    rows = [
        [item.name, item.stored, size_words(item.bytes_per_token), _predicted_words(item)]
        if item.problem is None
        else [item.name, "-", "-", item.problem]
        for item in predictions
    ]
    header = ["model", "stored", "a token reads", "predicted"]
    print_table(rows, header=header, right=[2], flexible=3, indent="  ")


def _predicted_words(item: Prediction) -> str:
    words = f"{_rate(item.tokens_per_second)} tokens/s"
    return f"{words}, but needs {size_words(item.missing)} more" if item.missing else words


def _rate(number: float) -> str:
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def _print_verdicts(verdicts: list[Verdict]) -> None:
    print(styled("What it can run", "bold"))
    rows = [
        [
            verdict.name,
            size_words(verdict.need["float32"]),
            size_words(verdict.need["bfloat16"]),
            _run_words(verdict),
            f"{size_words(verdict.fine_tune)} {'yes' if verdict.can_fine_tune else ' no'}",
        ]
        for verdict in verdicts
    ]
    header = ["preset", "float32", "bfloat16", "runs, at most", "fine-tune"]
    print_table(rows, header=header, right=[1, 2, 4], flexible=3, indent="  ")


def _run_words(verdict: Verdict) -> str:
    rate = verdict.tokens_per_second
    if verdict.dtype is None or rate is None:
        return f"needs {size_words(verdict.missing)} more"
    return f"{_rate(rate)} tokens/s, {verdict.dtype}"


def _print_notes(formula: str) -> None:
    for note in (
        "float32, bfloat16: memory for such weights, and for keys and values of 2048 tokens.",
        "predicted: one text, its bytes over the memory's rate, layers and the choice of ids.",
        "runs, at most: what reading all weights once a token allows, at the measured rate.",
        f"fine-tune: {formula}.",
    ):
        print_text(note, style="dim")
