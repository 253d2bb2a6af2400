"""What watches over the server asks: `/live`, `/ready` and `/metrics`."""

from collections.abc import Callable
from typing import Literal

import msgspec
from starlette.responses import Response

from bluejay.generation.engine_requests import EngineStatus
from bluejay.serving.errors import ApiError, unavailable
from bluejay.serving.lifecycle import Lifecycle
from bluejay.serving.metrics import CONTENT_TYPE, Metrics
from bluejay.serving.routes import Call, Route, json_answer

Readiness = Callable[[], ApiError | None]
"""None when work is taken, else what is told to whoever brings some."""


class LiveAnswer(msgspec.Struct, frozen=True):
    """The process answers, whatever its engine does."""

    status: Literal["live"] = "live"


class ReadyAnswer(msgspec.Struct, frozen=True):
    """Work is taken."""

    status: Literal["ready"] = "ready"


def readiness_of(
    lifecycle: Lifecycle, status: Callable[[], EngineStatus] | None
) -> ApiError | None:
    """Why no work is taken now."""
    if lifecycle.refusal is not None:
        return lifecycle.refusal()
    if lifecycle.is_draining:
        return unavailable("The server is shutting down.", code="draining")
    if status is None:
        return None
    now = status()
    if now.is_failed:
        return unavailable("The engine has failed: the server must be restarted.", code="failed")
    if not now.is_ready:
        return unavailable("The model is still warming up: try again soon.", code="warming_up")
    return None


def probe_routes(readiness: Readiness, metrics: Metrics) -> list[Route]:
    """The three routes."""

    async def live(_: Call[None]) -> Response:
        return json_answer(LiveAnswer())

    async def ready(_: Call[None]) -> Response:
        if problem := readiness():
            raise problem
        return json_answer(ReadyAnswer())

    async def figures(_: Call[None]) -> Response:
        return Response(metrics.exposition(), headers={"content-type": CONTENT_TYPE})

    return [
        Route(
            method="GET",
            path="/live",
            summary="Whether the process answers. Needs no key.",
            handler=live,
            answer=LiveAnswer,
            is_open=True,
            needs_engine=False,
            is_probe=True,
        ),
        Route(
            method="GET",
            path="/ready",
            summary="200 when work is taken, 503 before, while draining and after a failure.",
            handler=ready,
            answer=ReadyAnswer,
            needs_engine=False,
            is_probe=True,
        ),
        Route(
            method="GET",
            path="/metrics",
            summary="Figures for Prometheus.",
            handler=figures,
            media_type="text/plain",
            needs_engine=False,
            is_probe=True,
        ),
    ]
