"""Who comes when the queue is full costs little: what he sends is not read."""

import json
from collections.abc import Callable, Sequence

import pytest

from bluejay.generation.engine_requests import EngineLimits, EngineRequest
from bluejay.serving.chat import chat_routes
from bluejay.serving.completions import completion_routes
from bluejay.serving.infill import infill_routes
from bluejay.serving.responses import response_routes
from bluejay.serving.routes import Route
from bluejay.serving.service import TextService
from serving.fake_engine import FakeEngine, scripted
from serving.live_server import read_answer
from serving.route_server import serve_routes

ROUTES: dict[str, Callable[[TextService], Sequence[Route]]] = {
    "/v1/completions": completion_routes,
    "/v1/chat/completions": chat_routes,
    "/v1/responses": response_routes,
    "/infill": infill_routes,
}


@pytest.mark.parametrize("path", ROUTES)
def test_a_body_is_not_read_where_the_queue_is_full(path: str) -> None:
    """A client that asks before it sends is answered at once, and nonsense is as welcome as a
    request; with room again, the body counts."""
    engine = FakeEngine(scripted([1]), limits=EngineLimits(queued_requests=1))
    try:
        with serve_routes(ROUTES[path], engine=engine) as client:
            engine.hold()
            engine.submit(EngineRequest(prompts=[(1,)], max_tokens=1), lambda _: None)
            refused = client.raw.post(path, b"no JSON at all")
            assert refused.status == 429
            assert int(refused.headers["retry-after"]) >= 1
            assert json.loads(refused.body)["error"]["code"] == "queued_requests_full"
            with client.raw.connect() as connection:
                head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json"
                expecting = "Content-Length: 100000\r\nExpect: 100-continue\r\n\r\n"
                connection.sendall(f"{head}\r\n{expecting}".encode())
                assert read_answer(connection).status == 429
            engine.release()
            while engine.status().queued_requests:
                pass
            assert client.raw.post(path, b"no JSON at all").status == 400
    finally:
        engine.close()
