"""A live server of some routes, and a client of theirs."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from bluejay.serving.access import Access
from bluejay.serving.routes import Route
from bluejay.serving.service import TextService
from serving.fake_engine import Answer as EngineAnswer
from serving.fake_engine import FakeEngine
from serving.live_server import Answer, Raw, live_server, make_app, quick_limits
from serving.text_server import text_service


@dataclass(frozen=True, kw_only=True)
class Client:
    """Speaks JSON; what is refused is looked at with `refusal`."""

    raw: Raw
    engine: FakeEngine

    def post(self, path: str, **body: Any) -> Any:
        """The answer to a body, which must be 200."""
        answer = self.send(path, body)
        assert answer.status == 200, answer.body
        return json.loads(answer.body)

    def get(self, path: str) -> Any:
        """What is at a path, which must be 200."""
        answer = self.raw.request("GET", path)
        assert answer.status == 200, answer.body
        return json.loads(answer.body)

    def send(self, path: str, body: Any) -> Answer:
        """The whole answer to a body."""
        return self.raw.post(path, json.dumps(body).encode())

    def refusal(self, path: str, **body: Any) -> dict[str, Any]:
        """The error that answers a body, with its status."""
        answer = self.send(path, body)
        error: dict[str, Any] = json.loads(answer.body)["error"]
        return error | {"status": answer.status}


@contextmanager
def serve_routes(
    make: Callable[[TextService], Sequence[Route]],
    answer: EngineAnswer | None = None,
    *,
    access: Access | None = None,
    engine: FakeEngine | None = None,
    **given: Any,
) -> Iterator[Client]:
    """Routes of a service behind a real socket; `given` is of the service."""
    used = engine or FakeEngine(answer or (lambda _: iter(())))
    try:
        limits = given.pop("limits", None) or quick_limits()
        routes = make(text_service(used, limits=limits, **given))
        app = make_app(
            routes,
            status=used.status,
            require_place=used.require_place,
            limits=limits,
            access=access or Access(),
        )
        with live_server(app) as listening:
            yield Client(raw=Raw(port=listening.port), engine=used)
    finally:
        if engine is None:
            used.close()
