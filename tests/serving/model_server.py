"""The bundled model, served with all that `bluejay serve` has, in a thread of this process."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bluejay.generation.engine_requests import EngineLimits
from bluejay.runs.language_model import LanguageModel, load
from bluejay.runs.serving import ModelServer, ServingPlan
from serving.live_server import Raw, live_server, quick_limits

WARM_UP_SECONDS = 300.0


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """The server, what it serves, and a client that sends what it likes."""

    server: ModelServer
    model: LanguageModel
    raw: Raw


@contextmanager
def serve_model(**given: Any) -> Iterator[ServedModel]:
    """A server that is ready; `given` is of its plan."""
    model = load("bluejay-tiny")
    defaults: dict[str, Any] = {
        "name": "bluejay-tiny",
        "created": 1_700_000_000,
        "engine": EngineLimits(num_slots=4, context_length=256),
        "limits": quick_limits(),
    }
    server = ModelServer(model, ServingPlan(**(defaults | given)))
    server.start(lambda done, total: None)
    deadline = time.monotonic() + WARM_UP_SECONDS
    while not server.engine.status().is_ready:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    try:
        with live_server(server.app) as listening:
            yield ServedModel(server=server, model=model, raw=Raw(port=listening.port))
    finally:
        assert server.stop(WARM_UP_SECONDS)
