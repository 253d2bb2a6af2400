"""`bluejay generate`: complete a text, printing as it goes."""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Iterator
from itertools import chain, islice
from typing import Any

from bluejay.cli.failures import EXIT_INTERRUPTED
from bluejay.cli.loading import add_model_arguments, announce_compiling, load_draft, load_model
from bluejay.cli.parser import CommandParser, one_of, positive_number, real_number, whole_number
from bluejay.cli.remote import add_remote_arguments, connect
from bluejay.cli.samples import SamplePrinter, Samples, print_json, print_logprobs, print_summary
from bluejay.cli.status import Status, status
from bluejay.cli.terminal import argument_text

SPECULATION = ("auto", "ngram", "off")
_SEED_BITS = 31
_SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


def add_arguments(parser: CommandParser) -> None:
    """The options of `bluejay generate`."""
    parser.add_argument("prompt", metavar="PROMPT", help="the text to go on from; - reads stdin")
    add_model_arguments(parser)
    add_remote_arguments(parser)
    _add_length_arguments(parser)
    _add_sampling_arguments(parser)
    _add_speculation_arguments(parser)
    group = parser.add_argument_group("output")
    group.add_argument("--json", action="store_true", help="print one JSON object at the end")
    group.add_argument("--no-stream", action="store_true", help="print when all is there")
    group.add_argument(
        "--logprobs",
        metavar="K",
        type=whole_number,
        help="show each token's probability and its K likeliest alternatives",
    )


def _add_length_arguments(parser: CommandParser) -> None:
    group = parser.add_argument_group("how much")
    group.add_argument(
        "--max-tokens",
        metavar="N",
        type=positive_number,
        default=64,
        help="stop after so many tokens (default: 64; a token is about 4 letters)",
    )
    group.add_argument(
        "--stop",
        metavar="TEXT",
        action="append",
        type=_unescaped,
        default=[],
        help=r"stop before this text; \n is a line end; may be given several times",
    )
    group.add_argument(
        "-n", "--n", metavar="N", type=positive_number, default=1, help="write so many samples"
    )


def _add_sampling_arguments(parser: CommandParser) -> None:
    group = parser.add_argument_group("sampling")
    numbers = [
        ("temperature", "0 always takes the likeliest token, 1 follows the model (default: 0.8)"),
        ("top_p", "keep the likeliest tokens up to this probability (default: 0.95)"),
        ("min_p", "drop tokens below this share of the likeliest one's probability"),
        ("typical_p", "keep the most typical tokens up to this probability"),
        ("repetition_penalty", "above 1: avoid tokens that were there, prompt included"),
        ("presence_penalty", "-2 to 2: lower each token that was generated, once"),
        ("frequency_penalty", "-2 to 2: lower it for every time that it was"),
    ]
    for name, what in numbers:
        option = "--" + name.replace("_", "-")
        group.add_argument(option, metavar="X", type=real_number, help=what)
    group.add_argument(
        "--top-k", metavar="K", type=whole_number, help="keep the K likeliest tokens (0: all)"
    )
    group.add_argument(
        "--logit-bias",
        metavar="ID=X",
        action="append",
        type=_bias,
        default=[],
        help="add X to the score of a token id; may be given several times",
    )
    group.add_argument(
        "--seed", metavar="N", type=whole_number, help="the same seed writes the same text"
    )


def _add_speculation_arguments(parser: CommandParser) -> None:
    group = parser.add_argument_group("speed (the text stays the same)")
    group.add_argument(
        "--speculate",
        metavar="|".join(SPECULATION),
        type=one_of(*SPECULATION),
        default=SPECULATION[0],
        help="check several tokens at once that stood in the text before: where that pays "
        "(auto, the default), from the first match on (ngram), or not (off)",
    )
    group.add_argument(
        "--draft",
        metavar="MODEL",
        help="let this smaller model, with the same tokenizer, draft the tokens",
    )


def run(arguments: argparse.Namespace) -> int:
    """Complete the prompt on stdout; what is said about it goes to stderr."""
    prompt = argument_text(arguments.prompt, "prompt")
    options = _options(arguments)
    streams = not (arguments.json or arguments.no_stream)
    samples = Samples(num_samples=arguments.n)
    printer = SamplePrinter(prompt, num_samples=arguments.n)
    with status() as shown:
        deltas, name = _writer(arguments, shown, prompt, options)
        try:
            for delta in _deltas(deltas, shown, streams=streams):
                samples.add(delta)
                if streams:
                    printer.show(delta)
        except KeyboardInterrupt:
            samples.is_interrupted = True
    if arguments.json:
        print_json(samples, model=name, prompt=prompt, seed=options["seed"])
    else:
        if not streams:
            printer.show_all(samples)
        printer.end()
        if arguments.logprobs is not None:
            print_logprobs(samples)
        print_summary(
            samples, max_tokens=arguments.max_tokens, seed=arguments.seed, options=options
        )
    return EXIT_INTERRUPTED if samples.is_interrupted else 0


def _writer(
    arguments: argparse.Namespace, shown: Status, prompt: str, options: dict[str, Any]
) -> tuple[Iterator[Any], str]:
    """The deltas of a model here or at `--url`, and the model's name."""
    if arguments.url is not None:
        from bluejay.generation.sampling_params import DEFAULT_TEMPERATURE, DEFAULT_TOP_P

        remote, name = connect(arguments, shown)
        shown.say(f"{name} writes")
        ours = {"temperature": DEFAULT_TEMPERATURE, "top_p": DEFAULT_TOP_P} | options
        return remote.deltas(prompt, **_remote_options(ours)), name
    model, name = load_model(arguments, shown)
    if arguments.draft is not None:
        options["draft"] = load_draft(arguments.draft, shown)
    announce_compiling(shown, "Writing")
    return model.deltas(prompt, **options), name


def _remote_options(options: dict[str, Any]) -> dict[str, Any]:
    """As fields of a request: how a server speeds itself up is its own affair."""
    biases = {str(token): value for token, value in options["logit_bias"].items()}
    kept = {name: value for name, value in options.items() if name != "speculation"}
    return kept | {"logit_bias": biases}


def _deltas(deltas: Iterator[Any], shown: Status, *, streams: bool) -> Iterator[Any]:
    """The deltas, of which the first two are awaited before anything is printed: prompt and single
    token are programs of their own, and the second may have to be compiled as well."""
    if not streams:
        yield from deltas
        return
    first = list(islice(deltas, 2))
    shown.stop()
    yield from chain(first, deltas)


def _options(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(arguments, name) for name in _SAMPLING}
    chosen = {name: value for name, value in given.items() if value is not None}
    seed = secrets.randbits(_SEED_BITS) if arguments.seed is None else arguments.seed
    return chosen | {
        "max_tokens": arguments.max_tokens,
        "stop": arguments.stop,
        "n": arguments.n,
        "seed": seed,
        "logprobs": arguments.logprobs,
        "speculation": arguments.speculate,
        "logit_bias": dict(arguments.logit_bias),
    }


def _unescaped(text: str) -> str:
    r"""A stop text as it is typed in a shell, where \n and \t are hard to give otherwise."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _bias(text: str) -> tuple[int, float]:
    token, sign, value = text.partition("=")
    try:
        if sign:
            return int(token), float(value)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"takes ID=X, such as 262=-5, not {text!r}")
