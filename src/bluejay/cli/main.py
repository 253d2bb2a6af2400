"""The command `bluejay`: find the subcommand, run it, turn what goes wrong into an exit code."""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from bluejay.cli import completion, greeting
from bluejay.cli.commands import COMMANDS, command_parser, find_command
from bluejay.cli.failures import EXIT_INTERRUPTED, Failure, describe
from bluejay.cli.huge_pages import restart_with_huge_pages
from bluejay.core.errors import UsageError

# What a shell reports for a process that SIGPIPE ended; the reader went away, nobody failed.
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE


def main() -> None:
    """Run the command line of this process and exit."""
    restart_with_huge_pages(sys.argv[1:])
    sys.exit(run(sys.argv[1:]))


def run(argv: Sequence[str]) -> int:
    """The exit code of one command; failures are printed as a sentence, or raised with --debug."""
    is_debugging = "--debug" in argv or os.environ.get("BLUEJAY_DEBUG", "0") not in ("", "0")
    try:
        code = _dispatch(list(argv))
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        _discard_output()
        return EXIT_BROKEN_PIPE
    except KeyboardInterrupt:
        if is_debugging:
            raise
        return EXIT_INTERRUPTED
    except Exception as error:
        if is_debugging and not isinstance(error, UsageError):
            raise
        return _report(describe(error))


def _dispatch(argv: list[str]) -> int:
    """Read the options in front of the command, then hand over to it."""
    while argv and argv[0] == "--debug":
        argv.pop(0)
    if not argv:
        greeting.print_greeting()
        return 0
    word, rest = argv[0], argv[1:]
    if word in ("-h", "--help", "help"):
        return _help(rest)
    if word == "--version":
        greeting.print_version()
        return 0
    if word == "--print-completion":
        completion.print_script(rest)
        return 0
    if word == completion.ASK_OPTION:
        completion.print_candidates(rest)
        return 0
    command = find_command(word)
    arguments = command_parser(command).parse(rest)
    code = command.run(arguments)
    return 0 if code is None else code


def _help(rest: list[str]) -> int:
    wanted = [word for word in rest if word in COMMANDS]
    if wanted:
        command_parser(COMMANDS[wanted[0]]).print_help()
    else:
        greeting.print_help()
    return 0


def _report(failure: Failure) -> int:
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _discard_output()
    with suppress(OSError):  # nobody may be left to tell
        print(f"bluejay: {failure.sentence}", file=sys.stderr, flush=True)
    return failure.exit_code


def _discard_output() -> None:
    """Point stdout at nothing, or Python would fail once more when it flushes at its end."""
    # Where stdout is no file of the system nothing is left to flush.
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
