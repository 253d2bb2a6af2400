"""`bluejay convert`: write a model in another format or precision, and compare the two."""

import argparse
from pathlib import Path

from bluejay.cli.loading import DTYPES, parameter_words
from bluejay.cli.parser import CommandParser, one_of
from bluejay.cli.status import duration, size_words, status
from bluejay.cli.table import print_table

_FORMATS = ("hf", "native")


def add_arguments(parser: CommandParser) -> None:
    """The options of `bluejay convert`."""
    parser.add_argument("source", metavar="SRC", help="a name, folder, file or owner/name")
    parser.add_argument("destination", metavar="DST", help="the folder to make")
    parser.add_argument(
        "--to",
        metavar="|".join(_FORMATS),
        type=one_of(*_FORMATS),
        required=True,
        help="hf: a folder that transformers loads; native: ours, with checksums",
    )
    parser.add_argument(
        "--dtype",
        metavar="|".join(DTYPES),
        type=one_of(*DTYPES),
        help="of the stored weights (default: as they are; float32 for block-quantized ones)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Convert with progress, then print what was written and how it compares."""
    with status() as shown:
        shown.say(f"Opening {arguments.source}")
        from bluejay.checkpoints.convert import convert
        from bluejay.checkpoints.locate import locate

        def on_tensor(_name: str, done: int, total: int) -> None:
            if done < total:
                shown.say("Writing", done, total)
            else:
                shown.say("Reading back and comparing")

        report = convert(
            locate(arguments.source),
            Path(arguments.destination).expanduser(),
            to=arguments.to,
            dtype=arguments.dtype,
            on_tensor=on_tensor,
        )
    stored = ", ".join(f"{count} in {name}" for name, count in sorted(report.dtypes.items()))
    rounded = report.num_tensors - report.num_equal
    rows = [
        ["written", f"{report.destination} ({report.format}, {size_words(report.num_bytes)})"],
        ["model", f"{report.family}, {parameter_words(report.num_parameters)}"],
        ["tensors", f"{report.num_tensors}: {stored}"],
        ["equal", f"{report.num_equal} tensors have the very values of the source"],
    ]
    if rounded:
        largest = f"{report.largest_rounding:.1e}"
        rows.append(["rounded", f"{rounded} tensors, by {largest} of their largest value at most"])
    size = f"{report.tokenizer_size:,} ids" if report.tokenizer_size else "none with the source"
    rows += [["tokenizer", size], ["time", duration(report.seconds)]]
    print_table(rows, flexible=1)
