"""Models on a server in place of local ones: `--url`, and what it rules out."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from bluejay.cli.parser import CommandParser
from bluejay.cli.status import Status
from bluejay.core.errors import UsageError

if TYPE_CHECKING:
    from bluejay.serving.client import RemoteModel

KEY_VARIABLE = "BLUEJAY_API_KEY"
# What the server decides, with the value that means "not given".
_LOCAL = {"dtype": None, "cache_dtype": None, "threads": None, "draft": None, "speculate": "auto"}


def add_remote_arguments(parser: CommandParser) -> None:
    """`--url` and `--api-key-env`."""
    group = parser.add_argument_group("model on a server")
    group.add_argument(
        "--url",
        metavar="URL",
        help="let the server there write: http://HOST:PORT (--model is then one of its names)",
    )
    group.add_argument(
        "--api-key-env",
        metavar="NAME",
        help=f"the environment variable with its API key (default: {KEY_VARIABLE})",
    )


def connect(arguments: argparse.Namespace, shown: Status) -> tuple[RemoteModel, str]:
    """The model at `--url`, and its name: the server's first unless one is asked for.

    Raises UsageError for options that only a local model has.
    """
    from bluejay.serving.client import RemoteModel, RemoteServer

    _require_no_local_options(arguments)
    server = RemoteServer(arguments.url, api_key=_api_key(arguments))
    shown.say(f"Asking {server.url}")
    name = arguments.model
    if name is None:
        names = server.models()
        if not names:
            raise UsageError(f"{server.url} names no model: say which with --model.")
        name = names[0]
    return RemoteModel(server, name), name


def _require_no_local_options(arguments: argparse.Namespace) -> None:
    for name, default in _LOCAL.items():
        if getattr(arguments, name, default) != default:
            option = "--" + name.replace("_", "-")
            raise UsageError(f"{option} is decided by the server: leave it out with --url.")


def _api_key(arguments: argparse.Namespace) -> str | None:
    """From the environment, so that no list of processes shows it."""
    if arguments.api_key_env is None:
        return os.environ.get(KEY_VARIABLE)
    key = os.environ.get(arguments.api_key_env)
    if not key:
        raise UsageError(
            f"--api-key-env names {arguments.api_key_env!r}, which is not set: put the key into"
            " that environment variable."
        )
    return key
