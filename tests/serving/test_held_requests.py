"""A request that waits for its turn to begin, and what may happen to its connection meanwhile."""

import asyncio
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from bluejay.serving.app import App
from bluejay.serving.guard import GuardedProtocol, guarded
from bluejay.serving.limits import ConnectionLimits
from bluejay.serving.routes import Call, Route, StrictBody, json_answer
from serving.live_server import Raw

JSON = [("Content-Type", "application/json")]
DATA = Raw(port=1).encode("POST", "/work", headers=JSON, body=b"{}")


class Pipe(asyncio.Transport):
    """Remembers what was done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_paused = self.has_ended = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def is_closing(self) -> bool:
        return self.has_ended

    def close(self) -> None:
        self.has_ended = True


class Line:
    """One connection to an application whose requests begin when `begin` says so."""

    def __init__(self) -> None:
        async def work(_: Call[StrictBody]) -> Any:
            return json_answer({})

        route = Route(
            method="POST",
            path="/work",
            summary="Answers.",
            handler=work,
            body=StrictBody,
            is_queued=True,
        )
        self.app, self.num_asked = App([route]), 0
        self.waiting: list[Callable[[], None]] = []
        self.app.door.take_turn = self.waiting.append  # type: ignore[method-assign]
        config = uvicorn.Config(self._count, interface="asgi3", log_config=None, lifespan="off")
        kind = guarded(ConnectionLimits(), self.app.door)
        self.protocol: GuardedProtocol = kind(
            config=config, server_state=ServerState(), app_state={}
        )
        self.pipe = Pipe()
        self.protocol.connection_made(self.pipe)

    async def _count(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.num_asked += 1
        await self.app(scope, receive, send)

    def begin(self) -> None:
        for begin in self.waiting:
            begin()

    @property
    def num_kept(self) -> int:
        return self.app.door._places.num_kept


async def _settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_it_waits_and_is_answered() -> None:
    async def run() -> None:
        line = Line()
        line.protocol.data_received(DATA)
        await _settle()
        assert (line.num_asked, line.num_kept, line.pipe.is_paused) == (0, 1, True)
        assert not line.protocol.is_waiting
        line.protocol.enforce(line.protocol.loop.time() + 1000)
        assert not line.pipe.has_ended
        line.begin()
        await _settle()
        assert (line.num_asked, line.num_kept, line.pipe.is_paused) == (1, 0, False)
        assert line.pipe.written.startswith(b"HTTP/1.1 200 ")
        assert line.protocol.is_waiting

    asyncio.run(run())


def test_it_is_let_go_when_its_connection_ends() -> None:
    async def run() -> None:
        line = Line()
        line.protocol.data_received(DATA)
        line.pipe.close()
        line.protocol.connection_lost(None)
        line.begin()
        await _settle()
        assert (line.num_asked, line.num_kept, line.pipe.written) == (0, 0, b"")

    asyncio.run(run())


def test_it_is_answered_when_the_server_ends() -> None:
    async def run() -> None:
        line = Line()
        line.protocol.data_received(DATA)
        line.app.lifecycle.is_draining = True
        line.protocol.shutdown()
        assert not line.pipe.has_ended
        await _settle()
        assert line.pipe.written.startswith(b"HTTP/1.1 503 ")
        assert b"connection: close" in line.pipe.written.lower()
        assert line.pipe.has_ended
        line.begin()
        await _settle()
        assert (line.num_asked, line.num_kept) == (1, 0)

    asyncio.run(run())


def test_what_comes_behind_it_is_the_next_request() -> None:
    async def run() -> None:
        line = Line()
        line.protocol.data_received(DATA)
        line.protocol.data_received(DATA)
        line.begin()
        await _settle()
        assert (line.num_asked, line.num_kept) == (2, 0)
        assert line.pipe.written.count(b"HTTP/1.1 200 ") == 2

    asyncio.run(run())
