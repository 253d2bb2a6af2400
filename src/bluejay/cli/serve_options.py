"""The options of `bluejay serve`, and what they make; each can come from the environment."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from dataclasses import MISSING, Field, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bluejay.cli.loading import add_mesh_argument, add_model_place, add_running_arguments
from bluejay.cli.parser import CommandParser, positive_number, real_number, whole_number
from bluejay.cli.serve_limits import LIMIT_WORDS
from bluejay.core.errors import UsageError

if TYPE_CHECKING:
    from bluejay.serving.access import Access
    from bluejay.serving.limits import Limits
    from bluejay.serving.server import ServerSettings

PREFIX = "BLUEJAY_SERVE_"
_NOT_SET_BY_ENVIRONMENT = ("--help", "--debug", "--threads")


def add_arguments(parser: CommandParser) -> None:
    """All of them. Defaults are None: what was not given may be in the environment."""
    add_model_place(parser)
    _add_places(parser)
    _add_admission(parser)
    _add_capacity(parser)
    _add_model(parser)
    _add_limits(parser)
    parser.add_argument_group(
        "environment",
        f"Variables set options too: {PREFIX}PORT is --port, {PREFIX}LOG_JSON=1 is --log-json, and"
        " so on, with commas between several values. What is given here goes first.",
    )
    _take_environment(parser)


def _add_places(parser: CommandParser) -> None:
    group = parser.add_argument_group("where it listens")
    group.add_argument(
        "--host",
        metavar="ADDRESS",
        help="the address to bind (default: 127.0.0.1; any that others reach needs a key)",
    )
    group.add_argument(
        "--port",
        metavar="N",
        type=whole_number,
        help="the port (default: 8000; 0 takes any that is free)",
    )
    group.add_argument(
        "--lan",
        action="store_true",
        help="for your phone: bind this machine's address in the network, make a key, and show"
        " both as a QR code",
    )
    for name, what in (("certificate", "certificate"), ("key", "private key")):
        group.add_argument(
            f"--tls-{name}", metavar="FILE", type=Path, help=f"the {what} for https, as PEM"
        )
    group.add_argument(
        "--log-json", action="store_true", help="one JSON object on stderr for each request"
    )


def _add_admission(parser: CommandParser) -> None:
    group = parser.add_argument_group("who is let in")
    group.add_argument(
        "--api-key-file",
        metavar="FILE",
        type=Path,
        help="keys, one a line; each is a client of its own (one key: BLUEJAY_API_KEY)",
    )
    group.add_argument(
        "--allowed-host",
        metavar="NAME",
        action="append",
        default=[],
        help="a name that the server goes by; may be given several times",
    )
    group.add_argument(
        "--cors-origin",
        metavar="ORIGIN",
        action="append",
        default=[],
        help="let web pages from there in, such as https://example.org; may be given several"
        " times (default: none)",
    )


def _add_capacity(parser: CommandParser) -> None:
    group = parser.add_argument_group("how much at once")
    for option, metavar, what in (
        ("--slots", "N", "samples that are written together (default: 8)"),
        ("--context", "N", "tokens of a prompt with its answer (default: the model's, up to 2048)"),
        ("--queue-requests", "N", "samples that may wait (default: 64)"),
        ("--queue-tokens", "N", "tokens of prompts that may wait (default: 32768)"),
    ):
        group.add_argument(option, metavar=metavar, type=positive_number, help=what)


def _add_model(parser: CommandParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument(
        "--alias",
        metavar="NAME",
        action="append",
        default=[],
        help="another name that requests may give the model; may be given several times",
    )
    group.add_argument(
        "--adapter",
        metavar="NAME=DIR",
        action="append",
        type=_adapter,
        default=[],
        help="serve a fine-tuned copy of the model, of the same shape, too; requests name it as"
        " their model",
    )
    add_running_arguments(group)
    add_mesh_argument(group)


def _add_limits(parser: CommandParser) -> None:
    group = parser.add_argument_group("limits of one client or request")
    for _, bound in _bounds():
        flag, is_count = bound.metadata["flag"], isinstance(bound.default, int)
        read: Callable[[str], float] = positive_number if is_count else _seconds
        group.add_argument(
            flag,
            metavar="N" if is_count else "SECONDS",
            type=read,
            help=f"{LIMIT_WORDS[flag]} (default: {bound.default:{'' if is_count else 'g'}})",
        )


def _bounds() -> Iterator[tuple[type, Field[Any]]]:
    from bluejay.serving.limits import ConnectionLimits, DeskLimits, RequestLimits, WaitLimits

    for kind in (ConnectionLimits, RequestLimits, DeskLimits, WaitLimits):
        for bound in fields(kind):
            assert bound.default is not MISSING
            yield kind, bound


def _take_environment(parser: CommandParser) -> None:
    """Make what the environment says the default."""
    for option in parser.option_strings():
        if not option.startswith("--") or option in _NOT_SET_BY_ENVIRONMENT:
            continue
        variable = PREFIX + option[2:].upper().replace("-", "_")
        text, action = os.environ.get(variable), parser.action_of(option)
        if text and action is not None:
            parser.set_defaults(**{action.dest: _value(action, variable, text)})


def _value(action: argparse.Action, variable: str, text: str) -> Any:
    if action.nargs == 0:
        if text not in ("0", "1"):
            raise UsageError(f"{variable} is 1 or 0, not {text!r}.")
        return text == "1"
    read: Any = action.type or str
    try:
        if isinstance(action.default, list):
            return [read(part.strip()) for part in text.split(",")]
        return read(text)
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{variable} {error}.") from None


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where a server listens and whom it lets in. `made_key` was made for this run."""

    settings: ServerSettings
    access: Access
    made_key: str | None


def place_of(arguments: argparse.Namespace) -> Place:
    """UsageError for what cannot be, a port that is taken among it."""
    from bluejay.cli.serve_lan import lan_address, new_key
    from bluejay.serving.access import make_access, read_keys
    from bluejay.serving.server import ServerSettings, bind

    host = arguments.host or ServerSettings.host
    keys, made_key = read_keys(os.environ, arguments.api_key_file), None
    if arguments.lan:
        if arguments.host is not None:
            raise UsageError("--lan chooses the address itself: leave out --host, or --lan.")
        host = lan_address()
        if not keys:
            made_key = new_key()
            keys = (made_key,)
    settings = ServerSettings(
        host=host,
        port=ServerSettings.port if arguments.port is None else arguments.port,
        certificate=arguments.tls_certificate,
        certificate_key=arguments.tls_key,
    )
    access = make_access(
        host, keys=keys, allowed_hosts=arguments.allowed_host, origins=arguments.cors_origin
    )
    bind(host, settings.port).close()  # a port that is taken is told before the model is loaded
    return Place(settings=settings, access=access, made_key=made_key)


def limits_of(arguments: argparse.Namespace) -> Limits:
    """The defaults, with what was given."""
    from bluejay.serving.limits import (
        ConnectionLimits,
        DeskLimits,
        Limits,
        RequestLimits,
        WaitLimits,
    )

    given: dict[type, dict[str, Any]] = {}
    for kind, bound in _bounds():
        value = getattr(arguments, bound.metadata["flag"][2:].replace("-", "_"))
        if value is not None:
            given.setdefault(kind, {})[bound.name] = value
    return Limits(
        connection=ConnectionLimits(**given.get(ConnectionLimits, {})),
        request=RequestLimits(**given.get(RequestLimits, {})),
        desk=DeskLimits(**given.get(DeskLimits, {})),
        wait=WaitLimits(**given.get(WaitLimits, {})),
    )


def capacity_of(arguments: argparse.Namespace) -> dict[str, int]:
    """What was given of `EngineLimits`, by the names of its fields."""
    from bluejay.serving.limits import ENGINE_FLAGS

    found = {
        name: getattr(arguments, flag[2:].replace("-", "_")) for name, flag in ENGINE_FLAGS.items()
    }
    return {name: value for name, value in found.items() if value is not None}


def _adapter(text: str) -> tuple[str, str]:
    name, sign, place = text.partition("=")
    if not (name and sign and place):
        raise argparse.ArgumentTypeError(
            f"takes NAME=DIR, such as pirate=runs/pirate, not {text!r}"
        )
    return name, place


def _seconds(text: str) -> float:
    value = real_number(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"takes seconds, more than 0, not {text!r}")
    return value
