"""`bluejay quantize`: write a model with weights of 8 or 4 bits, and measure what that costs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from bluejay.cli.loading import parameter_words
from bluejay.cli.parser import CommandParser, one_of
from bluejay.cli.status import duration, size_words, status
from bluejay.cli.table import print_table, print_text

if TYPE_CHECKING:
    from bluejay.runs.quantization import Loss, QuantizationReport


def add_arguments(parser: CommandParser) -> None:
    """The options of `bluejay quantize`."""
    parser.add_argument("source", metavar="SRC", help="a name, folder, file or owner/name")
    parser.add_argument("destination", metavar="DST", help="the folder to make")
    parser.add_argument(
        "--bits",
        metavar="8|4",
        type=one_of("8", "4"),
        required=True,
        help="of a weight; embedding and head have 8 either way, norms and biases stay wide",
    )
    parser.add_argument(
        "--calibrate",
        metavar="FILE",
        help="a text like those the model is for: rounding errors are compensated on it",
    )
    parser.add_argument(
        "--held-out",
        metavar="FILE",
        help="a text to measure the loss on (default: the last tenth of --calibrate)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Quantize with progress, then print sizes and, where there is a text, the loss."""
    with status() as shown:
        shown.say(f"Opening {arguments.source}")
        from bluejay.checkpoints.locate import locate
        from bluejay.runs.compile_cache import configure_compile_cache
        from bluejay.runs.quantization import Quantization, quantize
        from bluejay.runs.quantization_texts import read_text

        def text(name: str | None) -> str | None:
            return None if name is None else read_text(Path(name).expanduser())

        how = Quantization(
            bits=int(arguments.bits),
            calibration=text(arguments.calibrate),
            held_out=text(arguments.held_out),
        )
        source, destination = locate(arguments.source), Path(arguments.destination).expanduser()
        configure_compile_cache()
        report = quantize(source, destination, how, on_progress=shown.say)
    _print_report(report)


def _print_report(report: QuantizationReport) -> None:
    packed = ", ".join(f"{count} in {name}" for name, count in report.packed.items())
    rows = [
        ["written", f"{report.destination} (native, packed)"],
        ["model", parameter_words(report.num_parameters)],
        ["packed", f"{packed}; the others as they were"],
        ["weights", f"{report.bits_per_weight:.2f} bits each"],
    ]
    if report.calibration_tokens:
        rows.append(["calibrated", f"on {report.calibration_tokens:,} tokens"])
    print_table([*rows, ["time", duration(report.seconds)]], flexible=1)
    print()
    sizes = [size_words(report.num_bytes_before), size_words(report.num_bytes_after)]
    measured = _measured(report.loss) if report.loss is not None else []
    print_table([["size", *sizes, ""], *measured], header=["", "before", "after", ""], right=[1, 2])
    if report.loss is None:
        print()
        print_text("The loss was not measured: --held-out FILE or --calibrate FILE gives a text.")


def _measured(loss: Loss) -> list[list[str]]:
    before, after = loss.bits_per_byte_before, loss.bits_per_byte_after
    return [
        ["bits per byte", f"{before:.4f}", f"{after:.4f}", f"{after / before - 1:+.2%}"],
        ["KL divergence", "", f"{loss.divergence:.4f}", "nats per token"],
        ["same best token", "", f"{loss.agreement:.1%}", f"of {loss.num_tokens:,} positions"],
    ]
