"""Streams: their frames, how they break off, and what ends the work behind them."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message

from bluejay.serving.connection import Connection
from bluejay.serving.lifecycle import Lifecycle
from bluejay.serving.limits import Limits
from bluejay.serving.record import RequestRecord
from bluejay.serving.routes import Call, Route
from bluejay.serving.sse import Event, event_stream
from serving.example_routes import SECRET, StreamBody, Witness, example_routes
from serving.live_server import (
    PATIENCE,
    Raw,
    captured_log,
    live_server,
    make_app,
    quick_limits,
    read_answer,
)

JSON = [("Content-Type", "application/json")]


@contextmanager
def serving(witness: Witness | None = None, **wait: float) -> Iterator[Raw]:
    """A server with these limits of times."""
    routes = [*example_routes(witness), NAMED]
    with live_server(make_app(routes, limits=quick_limits(wait=wait))) as listening:
        yield Raw(port=listening.port)


async def _named(call: Call[StreamBody]) -> Response:
    async def events() -> AsyncGenerator[Event, None]:
        yield Event(name="message", data={"token": "line\nbreak"})
        if call.body.failure:
            raise KeyError(SECRET)

    return event_stream(call, events(), closing=b"", error_name="error")


NAMED = Route(method="POST", path="/named", summary="Named.", handler=_named, body=StreamBody)


def test_a_stream_is_frames_and_done() -> None:
    with serving() as server:
        answer = server.post("/v1/stream", b'{"count":2,"size":2}')
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-store"
    assert answer.is_whole
    assert answer.body == (
        b'data: {"number":0,"text":"xx"}\n\ndata: {"number":1,"text":"xx"}\n\ndata: [DONE]\n\n'
    )


def test_events_may_have_names_and_the_end_may_be_plain() -> None:
    with serving() as server:
        whole = server.post("/named", b"{}")
        broken = server.post("/named", b'{"failure":"bug"}')
    assert whole.body == b'event: message\ndata: {"token":"line\\nbreak"}\n\n'
    assert broken.body.startswith(whole.body + b'event: error\ndata: {"error":{"message":')


@pytest.mark.parametrize(
    ("failure", "code"),
    [("bug", "internal_error"), ("panic", "internal_error"), ("late", "timeout")],
)
def test_a_stream_that_breaks_off_says_so_and_is_not_done(failure: str, code: str) -> None:
    with serving() as server, captured_log() as log:
        body = json.dumps({"count": 2, "failure": failure}).encode()
        answer = server.post("/v1/stream", body)
        server.request("GET", "/live")
    assert answer.status == 200
    assert answer.is_whole
    *frames, last = answer.body.decode().removesuffix("\n\n").split("\n\n")
    assert len(frames) == 2
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == code
    assert SECRET not in answer.body.decode() + log.getvalue()
    assert f" error={code}" in log.getvalue()
    assert ("KeyError" in log.getvalue()) == (failure == "bug")


def test_silence_is_broken_by_comments() -> None:
    with serving(ping_seconds=0.1) as server:
        answer = server.post("/v1/stream", b'{"count":2,"pause":1.0}')
    frames = answer.body.split(b"\n\n")
    assert frames.count(b": ping") >= 4
    assert [frame for frame in frames if frame != b": ping"] == [
        b'data: {"number":0,"text":"x"}',
        b'data: {"number":1,"text":"x"}',
        b"data: [DONE]",
        b"",
    ]


def test_a_stream_ends_at_its_deadline_with_an_error() -> None:
    witness = Witness()
    with serving(witness, request_seconds=0.5) as server:
        answer = server.post("/v1/stream", b'{"count":1000,"pause":0.1}')
        assert witness.ended.acquire(timeout=PATIENCE)
    assert answer.is_whole
    assert b"[DONE]" not in answer.body
    error = json.loads(answer.body.split(b"\n\n")[-2].removeprefix(b"data: "))["error"]
    assert error["code"] == "timeout"
    assert "within 0.5 s" in error["message"]
    assert "--request-timeout" in error["message"]


def test_a_whole_answer_has_the_same_deadline() -> None:
    witness = Witness()
    with serving(witness, request_seconds=0.5) as server:
        answer = server.post("/v1/wait", b"{}")
        assert witness.ended.acquire(timeout=PATIENCE)
    assert answer.status == 504
    assert "--request-timeout" in json.loads(answer.body)["error"]["message"]


@pytest.mark.parametrize("path", ["/v1/wait", "/v1/stream"])
def test_work_ends_when_its_client_has_left(path: str) -> None:
    witness = Witness()
    body = b'{"count":100000,"pause":0.01}'
    with captured_log() as log, serving(witness) as server:
        with server.connect() as connection:
            connection.sendall(server.encode("POST", path, headers=JSON, body=body))
            assert witness.started.acquire(timeout=PATIENCE)
        assert witness.ended.acquire(timeout=PATIENCE)
        done = len(witness.events)
        time.sleep(0.1)
        assert len(witness.events) == done < 1000
    assert f"POST {path} 499" in log.getvalue()


def test_work_ends_when_its_client_has_left_and_asked_for_more() -> None:
    """A second request on the same line, not yet read, does not hide that the line is dead."""
    witness = Witness()
    with serving(witness) as server:
        with server.connect() as connection:
            ask = server.encode("POST", "/v1/wait", headers=JSON, body=b"{}")
            connection.sendall(ask)
            assert witness.started.acquire(timeout=PATIENCE)
            connection.sendall(ask)
        assert witness.ended.acquire(timeout=PATIENCE)


def test_a_reset_line_ends_the_work_too() -> None:
    import socket
    import struct

    witness = Witness()
    with serving(witness) as server:
        connection = server.connect()
        connection.sendall(server.encode("POST", "/v1/wait", headers=JSON, body=b"{}"))
        assert witness.started.acquire(timeout=PATIENCE)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        assert witness.ended.acquire(timeout=PATIENCE)


def test_1000_clients_that_leave_leave_nothing_behind() -> None:
    """Connections, tasks and open files are what they were before."""
    import os

    witness = Witness()
    with serving(witness) as server:
        server.post("/v1/echo", b"{}")
        files = len(os.listdir("/proc/self/fd"))
        for number in range(1000):
            path = ("/v1/wait", "/v1/stream")[number % 2]
            with server.connect() as connection:
                body = b'{"count":1000,"pause":0.001}'
                connection.sendall(server.encode("POST", path, headers=JSON, body=body))
                if number % 3:
                    assert witness.started.acquire(timeout=PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while len(os.listdir("/proc/self/fd")) > files and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(os.listdir("/proc/self/fd")) <= files
        figures = server.request("GET", "/metrics").body.decode()
    left = [line for line in figures.splitlines() if 'status="499"' in line]
    assert sum(float(line.split()[-1]) for line in left) > 600


def test_the_end_is_told_once_even_if_the_stream_never_began() -> None:
    ends: list[str] = []

    async def events() -> AsyncGenerator[Event, None]:
        yield Event(data=1)

    async def gone() -> Message:
        return {"type": "http.disconnect"}

    async def broken(_: Message) -> None:
        raise OSError("the line is dead")

    async def run() -> None:
        connection = Connection(gone, lifecycle=Lifecycle(), limits=Limits())
        call = Call(
            body=None,
            request=Request({"type": "http", "headers": []}),
            id="",
            tenant="",
            record=RequestRecord(id=""),
            connection=connection,
        )
        stream = event_stream(call, events(), on_end=lambda: ends.append("end"))
        with pytest.raises(OSError, match="dead"):
            await stream({"type": "http"}, gone, broken)

    asyncio.run(run())
    assert ends == ["end"]


def test_streams_of_one_connection_follow_each_other() -> None:
    with serving() as server, server.connect() as connection:
        for _ in range(3):
            connection.sendall(server.encode("POST", "/v1/stream", headers=JSON, body=b"{}"))
            assert read_answer(connection).body.endswith(b"data: [DONE]\n\n")
