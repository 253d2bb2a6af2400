"""The subcommands there are, and the parser of each."""

from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches

from bluejay.cli import (
    bench,
    chat,
    convert,
    doctor,
    generate,
    info,
    models,
    plot,
    prepare,
    pull,
    quantize,
    runs,
    serve,
    suggest,
    train,
)
from bluejay.cli.parser import CommandParser
from bluejay.core.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class Command:
    """A subcommand; `run` takes the parsed arguments and returns an exit code, or None for 0."""

    name: str
    summary: str
    example: str
    add_arguments: Callable[[CommandParser], None]
    run: Callable[..., int | None]


COMMANDS: dict[str, Command] = {
    command.name: command
    for command in (
        Command(
            name="generate",
            summary="complete a text, printing as it goes",
            example='bluejay generate "Once upon a time" --max-tokens 100',
            add_arguments=generate.add_arguments,
            run=generate.run,
        ),
        Command(
            name="suggest",
            summary="the next words, or the rest of a half-typed one, with probabilities",
            example='bluejay suggest "I lo" -k 3',
            add_arguments=suggest.add_arguments,
            run=suggest.run,
        ),
        Command(
            name="chat",
            summary="a conversation with a model, here or on a server",
            example="bluejay chat smollm2-135m-instruct",
            add_arguments=chat.add_arguments,
            run=chat.run,
        ),
        Command(
            name="serve",
            summary="serve a model to other programs by OpenAI's API, and to your phone",
            example="bluejay serve smollm2-135m-instruct",
            add_arguments=serve.add_arguments,
            run=serve.run,
        ),
        Command(
            name="models",
            summary="the models that have a name, and which are here; `models rm NAME` removes one",
            example="bluejay models",
            add_arguments=models.add_arguments,
            run=models.run,
        ),
        Command(
            name="pull",
            summary="fetch a model once, and verify it",
            example="bluejay pull smollm2-135m-instruct",
            add_arguments=pull.add_arguments,
            run=pull.run,
        ),
        Command(
            name="info",
            summary="a model's tensors, parameters and memory",
            example="bluejay info gptj-6b",
            add_arguments=info.add_arguments,
            run=info.run,
        ),
        Command(
            name="convert",
            summary="write a model in another format or precision, and compare the two",
            example="bluejay convert model.gguf my-model --to hf --dtype bfloat16",
            add_arguments=convert.add_arguments,
            run=convert.run,
        ),
        Command(
            name="quantize",
            summary="write a model with weights of 8 or 4 bits, and measure what that costs",
            example="bluejay quantize gptj-6b my-model --bits 4 --calibrate my.txt",
            add_arguments=quantize.add_arguments,
            run=quantize.run,
        ),
        Command(
            name="prepare",
            summary="raw text to a tokenizer and token shards, clean and split",
            example="bluejay prepare my-texts --out my-data",
            add_arguments=prepare.add_arguments,
            run=prepare.run,
        ),
        Command(
            name="train",
            summary="train a model: a recipe, or your own text",
            example="bluejay train my.txt",
            add_arguments=train.add_arguments,
            run=train.run,
        ),
        Command(
            name="resume",
            summary="go on with a training run where it stopped",
            example="bluejay resume runs/my",
            add_arguments=train.add_resume_arguments,
            run=train.resume,
        ),
        Command(
            name="runs",
            summary="the training runs there are, and how far each is",
            example="bluejay runs",
            add_arguments=runs.add_arguments,
            run=runs.run,
        ),
        Command(
            name="plot",
            summary="the loss curves of training runs, as a picture",
            example="bluejay plot runs/small runs/large -o losses.svg",
            add_arguments=plot.add_arguments,
            run=plot.run,
        ),
        Command(
            name="bench",
            summary="how fast a model runs here, against what the memory allows",
            example="bluejay bench smollm2-135m-instruct",
            add_arguments=bench.add_arguments,
            run=bench.run,
        ),
        Command(
            name="doctor",
            summary="what this machine can run, in numbers",
            example="bluejay doctor",
            add_arguments=doctor.add_arguments,
            run=doctor.run,
        ),
    )
}

FRONT_OPTIONS = {
    "--help": "list the commands",
    "--version": "show the versions of Bluejay and Python",
    "--debug": "show tracebacks of errors",
    "--print-completion": "print a script that completes commands in bash, zsh or fish",
}
"""Options in front of the command."""


def find_command(word: str) -> Command:
    """The subcommand of that name, or UsageError with the nearest ones."""
    if word in COMMANDS:
        return COMMANDS[word]
    if word.startswith("-"):
        close = get_close_matches(word, FRONT_OPTIONS, n=1, cutoff=0.6)
        hint = f"perhaps you meant {close[0]}" if close else "options of a command follow it"
        raise UsageError(f"`bluejay` itself has no option {word[:60]}: {hint}.")
    close = get_close_matches(word.lower(), list(COMMANDS), n=2, cutoff=0.5)
    hint = f"Perhaps you meant {' or '.join(close)}." if close else f"There are {_listing()}."
    if " " in word:
        hint = f'To complete a text: bluejay generate "{word[:60]}"'
    raise UsageError(f"There is no command {word[:60]!r}. {hint}")


def command_parser(command: Command) -> CommandParser:
    """The parser of one subcommand's arguments."""
    summary = command.summary[0].upper() + command.summary[1:] + "."
    parser = CommandParser(command.name, summary=summary, example=command.example)
    command.add_arguments(parser)
    parser.add_general_arguments()
    return parser


def _listing() -> str:
    *names, last = COMMANDS
    return f"{', '.join(names)} and {last}"
