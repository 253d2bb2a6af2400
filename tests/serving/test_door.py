"""Who comes to a full queue is refused before anything is made of the request, as everybody is."""

import asyncio
import contextlib
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send

from bluejay.generation.engine_requests import EngineLimits, EngineRequest
from bluejay.serving.access import Access, make_access
from bluejay.serving.app import App, remembered
from bluejay.serving.completions import completion_routes
from bluejay.serving.places import Place, Places, place_of
from serving.fake_engine import FakeEngine, scripted
from serving.live_server import PATIENCE, Raw, captured_log, live_server, quick_limits, read_answer
from serving.text_server import text_service

PATH = "/v1/completions"
BODY = b'{"prompt":"a","max_tokens":1}'
JSON = [("Content-Type", "application/json")]
KEY = "a-key-of-many-letters"
_CHANGES = re.compile(rb"(x-request-id|date|retry-after): [^\r]*")


class CountingApp(App):
    """Counts the requests that it was asked."""

    num_asked = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.num_asked += 1
        await super().__call__(scope, receive, send)


@dataclass(kw_only=True)
class Full:
    """A server whose queue has one place, which is taken while the engine holds."""

    app: CountingApp
    engine: FakeEngine
    raw: Raw
    kept: Callable[[], int] = field(repr=False)

    def plain(self, **given: Any) -> bytes:
        return self.raw.encode("POST", PATH, headers=JSON, body=BODY, **given)

    def fill(self) -> None:
        self.engine.hold()
        self.engine.submit(EngineRequest(prompts=[(1,)], max_tokens=1), lambda _: None)

    def empty(self) -> None:
        self.engine.release()
        while self.engine.status().queued_requests:
            time.sleep(0.001)


@contextlib.contextmanager
def full(access: Access | None = None) -> Iterator[Full]:
    engine = FakeEngine(scripted([1]), limits=EngineLimits(queued_requests=1))
    limits = quick_limits()
    try:
        app = CountingApp(
            completion_routes(text_service(engine, limits=limits)),
            status=engine.status,
            require_place=engine.require_place,
            limits=limits,
            access=access,
        )
        with live_server(app) as listening:
            places = app.door._places
            served = Full(
                app=app,
                engine=engine,
                raw=Raw(port=listening.port),
                kept=lambda: places.num_kept,
            )
            served.fill()
            yield served
    finally:
        engine.close()


def exchange(connection: socket.socket, data: bytes) -> bytes:
    """The bytes of the one answer."""
    connection.sendall(data)
    answer = b""
    while b"\r\n\r\n" not in answer:
        answer += connection.recv(65536)
    head, _, body = answer.partition(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None
    while len(body) < int(length[1]):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def test_a_refusal_needs_no_application_and_is_the_usual_one() -> None:
    """Byte for byte, except for what no two answers share."""
    with full() as server, server.raw.connect() as connection:
        quick = exchange(connection, server.plain())
        assert server.app.num_asked == 0
        usual = exchange(connection, server.plain().replace(b" HTTP", b"?a=b HTTP", 1))
        assert server.app.num_asked == 1
        assert quick.startswith(b"HTTP/1.1 429 Too Many Requests\r\n")
        assert len(_CHANGES.findall(quick)) == 3
        assert _CHANGES.sub(b"", quick) == _CHANGES.sub(b"", usual)


def test_an_allowed_page_may_read_the_refusal() -> None:
    page = "https://pages.example"
    with full(Access(origins=frozenset({page}))) as server, server.raw.connect() as connection:
        asked = server.raw.encode("POST", PATH, headers=[*JSON, ("Origin", page)], body=BODY)
        quick = exchange(connection, asked)
        assert server.app.num_asked == 0
        usual = exchange(connection, asked.replace(b" HTTP", b"?a=b HTTP", 1))
        assert b"access-control-allow-origin: https://pages.example" in quick
        assert _CHANGES.sub(b"", quick) == _CHANGES.sub(b"", usual)


def test_a_connection_serves_on_after_refusals() -> None:
    with full() as server, server.raw.connect() as connection:
        for _ in range(3):
            connection.sendall(server.plain())
            assert read_answer(connection).status == 429
        assert server.app.num_asked == 0
        server.empty()
        connection.sendall(server.plain())
        assert read_answer(connection).status == 200
        connection.sendall(server.raw.encode("GET", "/live"))
        assert read_answer(connection).status == 200


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ((b"Bearer a-key", b"Bearer b-key"), 401),
        ((b"Authorization", b"X-Nothing"), 401),
        ((b"Host: 127.0.0.1", b"Host: elsewhere.example"), 403),
        ((b"Content-Type", b"Origin: https://evil.example\r\nContent-Type"), 403),
        ((b"Host", b"Ghost"), 400),
        ((b"POST", b"GET"), 405),
        ((b"POST", b"HEAD"), 405),
        ((b"/v1/completions", b"/nothing"), 404),
    ],
)
def test_what_is_wrong_is_told_before(change: tuple[bytes, bytes], status: int) -> None:
    with full(make_access("127.0.0.1", keys=[KEY])) as server:
        raw = server.raw.with_defaults(Authorization=f"Bearer {KEY}")
        data = raw.encode("POST", PATH, headers=JSON, body=BODY)
        assert raw.send(data).status == 429
        assert server.app.num_asked == 0
        assert change[0] in data
        with raw.connect() as connection:
            connection.sendall(data.replace(*change))
            method = "HEAD" if change[1] == b"HEAD" else "POST"
            assert read_answer(connection, method=method).status == status


def test_a_body_that_comes_later_is_no_request() -> None:
    data = b"POST / HTTP/1.1\r\n\r\n"
    with full() as server, server.raw.connect() as connection:
        asked = server.raw.encode("POST", PATH, headers=JSON, body=data)
        connection.sendall(asked[: -len(data)])
        time.sleep(0.1)
        connection.sendall(data)
        assert read_answer(connection).status == 429
        connection.sendall(server.raw.encode("GET", "/live"))
        assert read_answer(connection).status == 200


def test_requests_that_come_together_are_answered_in_turn() -> None:
    with full() as server, server.raw.connect() as connection:
        connection.sendall(server.plain() + server.raw.encode("GET", "/live") + server.plain())
        received = b""
        while received.count(b"HTTP/1.1 ") < 3:
            received += connection.recv(65536)
        assert re.findall(rb"HTTP/1.1 (\d+)", received) == [b"429", b"200", b"429"]


def test_a_refusal_is_counted_and_logged() -> None:
    with captured_log(as_json=True) as log, full() as server:
        answers = [server.raw.send(server.plain()) for _ in range(2)]
        assert server.app.num_asked == 0
        figures = server.raw.request("GET", "/metrics").body.decode()
    count = f'bluejay_http_requests_total{{method="POST",path="{PATH}",status="429"}} 2.0'
    assert count in figures
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    found = [line for line in lines if line.get("status") == 429]
    assert [line["request"] for line in found] == [a.headers["x-request-id"] for a in answers]
    assert all((line["method"], line["path"]) == ("POST", PATH) for line in found)
    assert all(0 <= line["ms"] < 1000 for line in found)


def test_nobody_is_refused_at_the_door_while_the_server_takes_no_work() -> None:
    with full() as server:
        server.app.lifecycle.is_draining = True
        assert server.raw.send(server.plain()).status == 503
        assert server.app.num_asked == 1


@pytest.mark.parametrize("body", [BODY, b'{"prompt":"a","stream":true}', b"{}", b"[", b'{"n":9}'])
def test_a_kept_place_is_given_back(body: bytes) -> None:
    """By whoever reaches the engine, and by whoever is told that his request is wrong."""
    with full() as server:
        server.empty()
        kept = []
        submit = server.engine.submit

        def watched(*given: Any) -> Callable[[], None]:
            kept.append(server.kept())
            return submit(*given)

        server.engine.submit = watched  # type: ignore[method-assign]
        for _ in range(3):
            server.raw.send(server.raw.encode("POST", PATH, headers=JSON, body=body))
        assert server.app.num_asked == 3
        assert set(kept) <= {1}
        deadline = time.monotonic() + PATIENCE
        while server.kept():
            assert time.monotonic() < deadline


def test_a_place_is_free_as_soon_as_the_queue_has_the_request() -> None:
    """Not when its answer is complete: then the queue would hold less than it can."""
    with full() as server, server.raw.connect() as connection:
        server.empty()
        server.engine.hold()
        connection.sendall(server.plain())
        deadline = time.monotonic() + PATIENCE
        while not server.engine.status().queued_requests or server.kept():
            assert time.monotonic() < deadline
        server.engine.release()
        assert read_answer(connection).status == 200


def test_those_who_were_let_in_count_before_they_are_in_the_queue() -> None:
    """Else all who come in one moment would be let in, to be refused one by one afterwards."""

    async def come_together() -> None:
        engine = FakeEngine(scripted([1]), limits=EngineLimits(queued_requests=2))
        routes = completion_routes(text_service(engine))
        app = App(routes, status=engine.status, require_place=engine.require_place)
        data = Raw(port=1).encode("POST", PATH, headers=JSON, body=BODY)
        first, second, third = (app.door.answer(data, []) for _ in range(3))
        assert isinstance(first, Place)
        assert isinstance(second, Place)
        assert isinstance(third, bytes)
        first.free()
        first.free()
        assert isinstance(app.door.answer(data, []), Place)
        assert isinstance(app.door.answer(data, []), bytes)
        engine.close()

    asyncio.run(come_together())


def test_few_begin_in_one_turn_of_the_loop() -> None:
    """The others in their order, and none is forgotten."""

    async def begin_all() -> list[int]:
        door, begun, seen = App([]).door, [], []
        for number in range(7):
            door.take_turn(lambda number=number: begun.append(number))  # type: ignore[misc]
        while len(begun) < 7:
            seen.append(len(begun))
            await asyncio.sleep(0)
        assert begun == list(range(7))
        await asyncio.sleep(0)
        door.take_turn(lambda: begun.append(7))
        assert begun[-1] == 7
        return seen

    seen = asyncio.run(begin_all())
    assert seen[0] == 2
    assert all(after - before <= 2 for before, after in pairwise(seen))


def test_a_place_is_found_in_the_scope() -> None:
    place = Places().keep()
    assert place_of({"state": {"bluejay.place": place}}) is place
    assert place_of({"state": {}}) is None
    assert place_of({}) is None


def test_a_status_is_remembered_for_its_time() -> None:
    now, asked = [0.0], []
    engine = FakeEngine(scripted([1]))

    def status() -> Any:
        asked.append(now[0])
        return engine.status()

    recent = remembered(status, seconds=1.0, clock=lambda: now[0])
    for at in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0):
        now[0] = at
        recent()
    assert asked == [0.0, 1.5, 3.0]
    engine.close()
