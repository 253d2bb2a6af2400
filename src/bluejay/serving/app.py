"""The server without its sockets: every request passes the same checks before its route."""

import time
from collections.abc import Callable, Sequence

from starlette.types import Receive, Scope, Send

from bluejay.generation.engine_requests import EngineStatus
from bluejay.serving.access import Access
from bluejay.serving.door import Door
from bluejay.serving.errors import ApiError
from bluejay.serving.exchange import Exchange
from bluejay.serving.lifecycle import Lifecycle
from bluejay.serving.limits import Limits
from bluejay.serving.metrics import Metrics
from bluejay.serving.openapi import openapi_route
from bluejay.serving.probes import probe_routes, readiness_of
from bluejay.serving.return_times import ReturnTimes
from bluejay.serving.router import Router
from bluejay.serving.routes import Route

_MOMENT = 0.01


def remembered(
    status: Callable[[], EngineStatus],
    *,
    seconds: float,
    clock: Callable[[], float] = time.monotonic,
) -> Callable[[], EngineStatus]:
    """`status`, which is asked again only when what it said is so many seconds old."""
    last: tuple[float, EngineStatus] | None = None

    def recent() -> EngineStatus:
        nonlocal last
        now = clock()
        if last is None or now - last[0] > seconds:
            last = now, status()
        return last[1]

    return recent


class App:
    """An ASGI application of `routes`, with `/live`, `/ready`, `/metrics` and `/openapi.json`.

    `status` and `require_place` are the engine's; without them the server is ready at once, and has
    room.
    """

    def __init__(
        self,
        routes: Sequence[Route],
        *,
        access: Access | None = None,
        limits: Limits | None = None,
        status: Callable[[], EngineStatus] | None = None,
        require_place: Callable[[int], None] | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        self.access = access or Access()
        self.limits = limits or Limits()
        self.metrics = metrics or Metrics(status)
        self.lifecycle = Lifecycle()
        self._status = status
        self._lately = status and remembered(status, seconds=_MOMENT)
        self._require_place = require_place
        self._return_times = ReturnTimes()
        described = [*routes, *probe_routes(self.readiness, self.metrics)]
        self.routes = (
            *described,
            openapi_route(described, needs_key=bool(self.access.keys_sha256)),
        )
        self.router = Router(self.routes)
        self.door = Door(self, self.routes)

    def readiness(self) -> ApiError | None:
        """Why no work is taken now, None when some is."""
        return readiness_of(self.lifecycle, self._status)

    def require_place(self, num_ahead: int = 0) -> None:
        """Raise QueueFullError where there is no room behind so many more.

        Asked before a body is read: whoever is refused costs little.
        """
        if self._require_place is not None:
            self._require_place(num_ahead)

    def was_ready(self) -> bool:
        """Whether `readiness` had nothing to say a moment ago: this is asked hundreds of times."""
        return readiness_of(self.lifecycle, self._lately) is None

    def return_seconds(self) -> int:
        """After how long one who is refused for lack of room is to come back."""
        return self._return_times.next(self._lately().finished if self._lately else 0)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            with self.lifecycle.call():
                await Exchange(self, scope, receive, send).run()
