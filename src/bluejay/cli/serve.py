"""`bluejay serve`: a model for other programs, by the API that they speak."""

from __future__ import annotations

import argparse
import os
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from bluejay.cli import serve_options
from bluejay.cli.loading import load_model
from bluejay.cli.parser import CommandParser
from bluejay.cli.serve_options import Place, capacity_of, limits_of, place_of
from bluejay.cli.serve_session import Session
from bluejay.cli.status import Status, status
from bluejay.core.errors import UsageError

if TYPE_CHECKING:
    from bluejay.model.params import DecoderParams
    from bluejay.runs.language_model import LanguageModel
    from bluejay.runs.serving import ModelServer


def add_arguments(parser: CommandParser) -> None:
    """The options of `bluejay serve`."""
    serve_options.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Serve until a signal ends it."""
    place = place_of(arguments)
    with _status(arguments) as shown:
        shown.say("Starting")
        server = _server(arguments, place, shown)
    session = Session(
        server, place, as_json=arguments.log_json, is_chosen=arguments.model is not None
    )
    session.run()
    return 0


def _status(arguments: argparse.Namespace) -> AbstractContextManager[Status]:
    """Silent where every line of stderr has to be JSON."""
    return nullcontext(Status()) if arguments.log_json else status()


def _server(arguments: argparse.Namespace, place: Place, shown: Status) -> ModelServer:
    from bluejay.checkpoints.locate import best_present
    from bluejay.runs.serving import ModelServer, ServingPlan, engine_limits

    limits = limits_of(arguments)
    named = argparse.Namespace(**vars(arguments))
    if named.model is None:
        named.model = best_present().entry.name
    model, given = load_model(named, shown, choice="MODEL")
    name = served_name(given)
    plan = ServingPlan(
        name=name,
        created=int(time.time()),
        engine=engine_limits(model.config, **capacity_of(arguments)),
        limits=limits,
        access=place.access,
        aliases=_aliases(name, arguments.alias),
        adapters=_adapters(arguments, model, shown),
    )
    shown.say("Making room for what is written")
    return ModelServer(model, plan)


def served_name(given: str) -> str:
    """How requests call a model: by its name, or that of its file or folder, but by no path."""
    from bluejay.checkpoints.catalogue import find_entry

    if find_entry(given) or not os.path.exists(os.path.expanduser(given)):
        return given
    path = Path(given).expanduser().resolve()
    return path.stem if path.is_file() else path.name


def _aliases(name: str, given: list[str]) -> list[str]:
    """Those given, and the name of a repository without its owner."""
    owner, _, short = name.partition("/")
    own = [short] if owner and short else []
    return list(dict.fromkeys([*given, *own]))


def _adapters(
    arguments: argparse.Namespace, model: LanguageModel, shown: Status
) -> dict[str, DecoderParams]:
    from bluejay.runs.serving_adapters import load_adapters

    places = dict(arguments.adapter)
    if len(places) < len(arguments.adapter):
        raise UsageError("--adapter gives one name twice: every adapter has a name of its own.")
    return load_adapters(
        model,
        places,
        dtype=arguments.dtype,
        on_adapter=lambda name: shown.say(f"Loading the adapter {name}"),
    )
