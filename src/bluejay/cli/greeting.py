"""What `bluejay` alone and `bluejay --help` say."""

import sys

from bluejay.checkpoints.locate import FIRST_MODEL, present_models
from bluejay.cli.commands import COMMANDS
from bluejay.cli.table import print_table
from bluejay.cli.terminal import styled
from bluejay.core.errors import BluejayError

_PULL = (f"bluejay pull {FIRST_MODEL}", "fetch a first model (93 MB)")
_TRIES = [
    ('bluejay suggest "How"', "the next words, with their probabilities"),
    ('bluejay generate "Once upon a time"', "complete a text, as you watch"),
    ("bluejay doctor", "what this machine can run"),
]


def print_greeting() -> None:
    """A few lines with three commands to try, beginning with the one that has to come first."""
    print("Bluejay completes texts with GPT-J and its relatives. Try:\n")
    tries = _TRIES if _has_model() else [_PULL, *_TRIES[:2]]
    print_table([[styled(command, "bold"), what] for command, what in tries], indent="  ")
    print("\n`bluejay --help` lists all commands.")


def print_help() -> None:
    """All commands and the options in front of them."""
    print("usage: bluejay COMMAND ...\n\nComplete texts with GPT-J and its relatives.\n")
    print("commands:")
    print_table(
        [[name, command.summary] for name, command in COMMANDS.items()], indent="  ", flexible=1
    )
    print("\noptions:")
    print_table(
        [
            ["-h, --help", "show this; `bluejay COMMAND --help` explains a command"],
            ["--version", "show the versions of Bluejay and Python"],
            ["--debug", "show tracebacks of errors (anywhere, or BLUEJAY_DEBUG=1)"],
            ["--print-completion SHELL", "a script that completes commands in bash, zsh or fish"],
        ],
        indent="  ",
        flexible=1,
    )
    print(
        "\nWhere a MODEL is asked for, give a name from `bluejay models`, a folder, a file, or\n"
        "owner/name from the Hugging Face hub. Exit codes: 2 usage, 3 data, 4 model files,\n"
        "5 memory, 6 disk, 70 hung and stopped, 75 saved and interrupted, 130 interrupted."
    )


def print_version() -> None:
    """One line for people and for reports of defects."""
    from bluejay import __version__

    print(f"bluejay {__version__} (Python {sys.version.split()[0]})")


def _has_model() -> bool:
    try:
        return bool(present_models())
    except (BluejayError, OSError):
        return False  # the greeting is no place to complain about a cache
