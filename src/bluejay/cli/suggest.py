"""`bluejay suggest`: the next words with their probabilities."""

import argparse
import json
import sys
from collections.abc import Sequence

from bluejay.cli.loading import add_model_arguments, announce_compiling, load_model
from bluejay.cli.parser import CommandParser, positive_number
from bluejay.cli.status import status
from bluejay.cli.terminal import (
    argument_text,
    bar,
    display_width,
    harmless,
    padded,
    shortened,
    styled,
    width,
)

_WIDEST_BAR = 50
_NARROWEST_BAR = 5


def add_arguments(parser: CommandParser) -> None:
    """The options of `bluejay suggest`."""
    parser.add_argument(
        "prefix", metavar="TEXT", help="what has been typed, half a word too; - reads stdin"
    )
    parser.add_argument(
        "-k", metavar="K", type=positive_number, default=5, help="how many words (default: 5)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_model_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    """Print the likeliest next words, or completions of a half-typed one."""
    prefix = argument_text(arguments.prefix, "text")
    with status() as shown:
        model, name = load_model(arguments, shown)
        announce_compiling(shown, "Weighing words")
        found = model.suggest(prefix, k=arguments.k)
    if arguments.json:
        words = [{"word": word, "probability": probability} for word, probability in found]
        document = {"model": name, "prefix": prefix, "suggestions": words}
        print(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2))
    elif found:
        print_bars(found)
    else:
        print("No word comes next: the model expects punctuation or the end.", file=sys.stderr)


def print_bars(found: Sequence[tuple[str, float]]) -> None:
    """A line for each word: the word, a bar whose full length is 100 %, the probability."""
    limit = width()
    percents = [_percent(probability) for _, probability in found]
    percent_columns = max(map(len, percents))
    longest = max(display_width(harmless(word)) for word, _ in found)
    word_columns = min(longest, max(4, limit - percent_columns - 4 - _NARROWEST_BAR))
    full = min(_WIDEST_BAR, limit - word_columns - percent_columns - 4)
    bars = [bar(probability, max(full, _NARROWEST_BAR)) for _, probability in found]
    bar_columns = max(map(display_width, bars))
    for (word, _), drawn, percent in zip(found, bars, percents, strict=True):
        shown = padded(shortened(harmless(word), word_columns), word_columns)
        line = padded(drawn, bar_columns)
        print(f"{styled(shown, 'bold')}  {styled(line, 'cyan')}  {percent:>{percent_columns}}")


def _percent(probability: float) -> str:
    return f"{100 * probability:.1f} %" if probability >= 0.0005 else f"{100 * probability:.0e} %"
