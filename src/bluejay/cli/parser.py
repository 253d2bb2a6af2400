"""argparse with sentences for errors: what was given, what is allowed, what was perhaps meant."""

import argparse
import re
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import NoReturn

from bluejay.core.errors import UsageError


class CommandParser(argparse.ArgumentParser):
    """The arguments of one subcommand; every one also takes `--debug` and `--help`."""

    def __init__(self, name: str, *, summary: str, example: str) -> None:
        super().__init__(
            prog=f"bluejay {name}",
            description=summary,
            epilog=f"example: {example}",
            allow_abbrev=False,
            add_help=False,
            formatter_class=_Formatter,
        )
        self.name = name

    def parse(self, argv: Sequence[str]) -> argparse.Namespace:
        """The arguments, or UsageError with one sentence."""
        arguments, unknown = self.parse_known_args(argv)
        if unknown:
            self._refuse(unknown)
        return arguments

    def add_general_arguments(self) -> None:
        """`--help` and `--debug`, which every command has; they come last in its help."""
        general = self.add_argument_group("general")
        general.add_argument("-h", "--help", action="help", help="show this and exit")
        general.add_argument("--debug", action="store_true", help="show tracebacks of errors")
        # argparse's own lists every option, which the groups below it do better.
        places = [f"[{a.metavar} ...]" if a.nargs == "*" else a.metavar for a in self.positionals()]
        self.usage = " ".join(map(str, [self.prog, *places, "[options]"]))

    def option_strings(self) -> list[str]:
        """Every option there is, such as `--seed`."""
        return [name for action in self._actions for name in action.option_strings]

    def action_of(self, option: str) -> argparse.Action | None:
        """What an option does, or None if there is no such option."""
        return self._option_string_actions.get(option)

    def positionals(self) -> list[argparse.Action]:
        """The arguments without a dash, in their order."""
        return [action for action in self._actions if not action.option_strings]

    def error(self, message: str) -> NoReturn:
        required = re.match(r"the following arguments are required: (.*)", message)
        if required:
            raise UsageError(f"{required[1]} is missing: `{self.prog} --help` shows what to give.")
        message = re.sub(r"^argument ([^:]+): expected one argument$", r"\1 needs a value", message)
        message = re.sub(r"^argument ([^:]+): ", lambda m: f"{m[1].split('/')[-1]} ", message)
        raise UsageError(message if message.endswith(".") else f"{message}.")

    def _refuse(self, unknown: list[str]) -> NoReturn:
        word = unknown[0].partition("=")[0]
        if not word.startswith("-"):
            raise UsageError(
                f"`{self.name}` has no place for {word[:60]!r}: put a text of several words "
                "in quotes."
            )
        close = get_close_matches(word, self.option_strings(), n=1, cutoff=0.6)
        hint = f"perhaps you meant {close[0]}" if close else f"`{self.prog} --help` lists them"
        raise UsageError(f"`{self.name}` has no option {word}: {hint}.")


def whole_number(text: str) -> int:
    """For `type=`: an int, or an error that says so."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes a whole number, not {text!r}") from None


def positive_number(text: str) -> int:
    """For `type=`: an int of at least 1."""
    number = whole_number(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"takes a whole number of at least 1, not {text!r}")
    return number


def real_number(text: str) -> float:
    """For `type=`: a float; ranges are the receiver's to check."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"takes a number, not {text!r}") from None


def one_of(*choices: str) -> Callable[[str], str]:
    """For `type=`: one of these words."""

    def check(text: str) -> str:
        if text in choices:
            return text
        close = get_close_matches(text, choices, n=1)
        hint = f" (perhaps {close[0]})" if close else ""
        raise argparse.ArgumentTypeError(
            f"takes {', '.join(choices[:-1])} or {choices[-1]}, not {text!r}{hint}"
        )

    return check


class _Formatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=30)
