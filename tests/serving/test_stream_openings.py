"""A stream begins with its first event: what fails before has a status, as if it were no stream."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import pytest
from starlette.responses import Response

from bluejay.serving.errors import unavailable
from bluejay.serving.routes import Call, Route
from bluejay.serving.sse import Event, event_stream
from serving.example_routes import SECRET, StreamBody
from serving.live_server import Raw, captured_log, live_server, make_app, quick_limits

STOP: list[Callable[[], None]] = []


@contextmanager
def serving(fail: Callable[[], NoReturn] | None = None, **wait: float) -> Iterator[Raw]:
    """A route whose first event comes after `pause`, or never, if `fail` is given."""

    async def late(call: Call[StreamBody]) -> Response:
        async def events() -> AsyncGenerator[Event, None]:
            await asyncio.sleep(call.body.pause)
            if fail is not None:
                fail()
            yield Event(data=1)

        return event_stream(call, events())

    route = Route(method="POST", path="/late", summary="Late.", handler=late, body=StreamBody)
    with live_server(make_app([route], limits=quick_limits(wait=wait))) as listening:
        STOP.append(listening.stop)
        yield Raw(port=listening.port)


def busy() -> NoReturn:
    raise unavailable("Its turn did not come.", code="queue_timeout")


def defect() -> NoReturn:
    raise KeyError(SECRET)


@pytest.mark.parametrize(
    ("fail", "status", "code"), [(busy, 503, "queue_timeout"), (defect, 500, "internal_error")]
)
def test_what_fails_before_the_first_event_has_a_status(
    fail: Callable[[], NoReturn], status: int, code: str
) -> None:
    with serving(fail) as server, captured_log() as log:
        answer = server.post("/late", b"{}")
        server.request("GET", "/live")
    assert answer.status == status
    assert answer.is_whole
    assert answer.headers["content-type"] == "application/json"
    assert json.loads(answer.body)["error"]["code"] == code
    assert ("retry-after" in answer.headers) == (status == 503)
    assert f" {status} " in log.getvalue()
    assert SECRET not in answer.body.decode() + log.getvalue()


def test_a_deadline_before_the_first_event_has_a_status() -> None:
    with serving(request_seconds=0.2) as server:
        answer = server.post("/late", b'{"pause":30}')
    assert answer.status == 504
    assert json.loads(answer.body)["error"]["code"] == "timeout"


def test_the_end_of_the_server_before_the_first_event_has_a_status() -> None:
    with serving(drain_seconds=0.1) as server, server.connect() as connection:
        body = b'{"pause":30}'
        head = f"POST /late HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        connection.settimeout(0.3)
        with pytest.raises(TimeoutError):
            connection.recv(1)  # nothing comes before the first event
        connection.settimeout(60)
        STOP[-1]()
        assert connection.recv(65536).startswith(b"HTTP/1.1 503 ")


def test_comments_begin_the_answer_only_when_the_time_in_the_queue_is_over() -> None:
    with serving(ping_seconds=0.05, queue_seconds=0.4) as server:
        early = server.post("/late", b'{"pause":0.2}')
        late = server.post("/late", b'{"pause":1.5}')
    assert early.body == b"data: 1\n\ndata: [DONE]\n\n"
    assert late.body.startswith(b": ping\n\n")
    assert late.body.endswith(b"data: 1\n\ndata: [DONE]\n\n")
