"""A live server of every route, whose models are tables: what it costs is the HTTP alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from bluejay.generation.engine_requests import EngineLimits
from bluejay.serving.access import Access
from bluejay.serving.embeddings import embedding_routes
from bluejay.serving.front_page import front_page_route
from bluejay.serving.infill import infill_routes
from bluejay.serving.kobold import kobold_routes
from bluejay.serving.limits import Limits
from bluejay.serving.routes import Route
from bluejay.serving.service import TextService
from bluejay.serving.suggest import suggest_routes
from serving.fake_engine import Answer, FakeEngine
from serving.live_server import Raw, live_server, make_app, quick_limits
from serving.table_models import TableEmbedder, TableWords
from serving.text_server import text_routes, text_service


def every_route(service: TextService) -> list[Route]:
    """What `bluejay serve` has, over tables."""
    routes = [
        *text_routes(service),
        *embedding_routes(service, TableEmbedder()),
        *suggest_routes(service, TableWords()),
        *infill_routes(service),
        *kobold_routes(service),
    ]
    return [front_page_route(routes, needs_key=False), *routes]


@contextmanager
def serve_stub(
    answer: Answer,
    *,
    engine_limits: EngineLimits | None = None,
    limits: Limits | None = None,
    access: Access | None = None,
    **given: Any,
) -> Iterator[tuple[Raw, FakeEngine]]:
    """All routes before an engine that answers as it is told; `given` is of the service."""
    engine = FakeEngine(answer, limits=engine_limits)
    chosen = limits or quick_limits()
    try:
        service = text_service(engine, limits=chosen, **given)
        app = make_app(
            every_route(service), status=engine.status, limits=chosen, access=access or Access()
        )
        with live_server(app) as listening:
            yield Raw(port=listening.port), engine
    finally:
        engine.close()
