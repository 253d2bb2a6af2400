"""A server of completions with known timing and known text, and with faults that can be asked for.

    python tests/fake_completions.py --port 8100 --slots 4 --token-seconds 0.01

Requests wait for one of the slots, then for `prefill_seconds`, then each token takes
`token_seconds`. Token i of a prompt and seed is always the same word. What it speaks is the part of
OpenAI's API that clients and the load generator use.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from fake_writing import Writing, check, no_number, word

METRICS = {
    "bluejay_num_requests_running": "slots_in_use",
    "bluejay_num_requests_waiting": "queued_requests",
    "bluejay_generation_tokens_total": "new_tokens",
    "bluejay_recompiles_total": "recompiles",
}
REASONS = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found"}


@dataclass(frozen=True, kw_only=True)
class FakeOptions:
    """`wrong` is one of: no-retry-after, truncated, unseeded, patient (never closes half a request
    head), stale (suggestions of the request before), leak (a slot for every dropped request), 500
    (for what is malformed), compiles (the first request is slow, and counted as a recompile)."""

    slots: int = 8
    queue: int = 64
    prefill_seconds: float = 0.0
    token_seconds: float = 0.0
    header_seconds: float = 2.0
    ready_after: float = 0.0
    key: str = ""
    name: str = "fake"
    wrong: str = ""


class RefusedError(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass
class Counters:
    """What `/metrics` tells."""

    slots_in_use: int = 0
    queued_requests: int = 0
    new_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    rejected: int = 0
    recompiles: int = 0

    def lines(self) -> str:
        return "".join(f"{name} {getattr(self, reading)}\n" for name, reading in METRICS.items())


@dataclass
class Exchange:
    """One request and the way back to its client."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    method: str
    path: str
    headers: dict[str, str]
    server: str
    body: bytes = b""
    ahead: bytes = b""  # of the next request on the connection

    def answer(self, status: int, document: object, headers: str = "") -> None:
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        reason = REASONS.get(status, "Other")
        about = f"Server: {self.server}\r\nContent-Length: {len(body)}\r\n{headers}"
        head = f"HTTP/1.1 {status} {reason}\r\n{about}\r\n"
        self.writer.write(head.encode() + body)

    def begin_stream(self) -> None:
        about = f"Server: {self.server}\r\nContent-Type: text/event-stream\r\n"
        head = f"HTTP/1.1 200 OK\r\n{about}Transfer-Encoding: chunked\r\n\r\n"
        self.writer.write(head.encode())

    def event(self, document: object) -> None:
        data = document if isinstance(document, str) else json.dumps(document)
        payload = f"data: {data}\n\n".encode()
        self.writer.write(b"%x\r\n%s\r\n" % (len(payload), payload))

    def end_stream(self) -> None:
        self.writer.write(b"0\r\n\r\n")


class FakeServer:
    """Answers on 127.0.0.1 until it is told to stop."""

    def __init__(self, options: FakeOptions) -> None:
        self.options = options
        self.counters = Counters()
        self.port = 0
        self.is_draining = False
        self.requests: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.num_connections = 0
        self._slots = asyncio.Semaphore(options.slots)
        self._began = time.monotonic()
        self._num_admitted = 0
        self._last_suggested = ""
        self._server: asyncio.Server | None = None

    async def start(self, port: int = 0) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]

    async def drain(self) -> None:
        """No longer ready; returns when what runs has finished."""
        self.is_draining = True
        while self.counters.slots_in_use or self.counters.queued_requests:
            await asyncio.sleep(0.02)

    @property
    def is_ready(self) -> bool:
        is_warm = time.monotonic() - self._began >= self.options.ready_after
        return is_warm and not self.is_draining

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        ends = (ConnectionError, asyncio.IncompleteReadError, TimeoutError, asyncio.CancelledError)
        with contextlib.suppress(*ends):
            first = await reader.read(1)
            while first:
                exchange = await self._read(first, reader, writer)
                await self._answer(exchange)
                await writer.drain()
                first = exchange.ahead or await reader.read(1)
        writer.close()

    async def _read(
        self, first: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> Exchange:
        seconds = None if self.options.wrong == "patient" else self.options.header_seconds
        async with asyncio.timeout(seconds):
            head = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *rest = head.split("\r\n")
        method, path, _ = line.split(" ")
        pairs = (item.partition(":")[::2] for item in rest if item)
        headers = {name.lower(): value.strip() for name, value in pairs}
        exchange = Exchange(reader, writer, method, path, headers, self.options.name)
        exchange.body = await reader.readexactly(int(headers.get("content-length", 0)))
        return exchange

    async def _answer(self, exchange: Exchange) -> None:
        self.paths.append(exchange.path)
        try:
            if exchange.path == "/live":
                exchange.answer(200, {"status": "live"})
                return
            key = self.options.key
            if key and exchange.headers.get("authorization") != f"Bearer {key}":
                raise RefusedError(401, "The key is missing or wrong.")
            if exchange.path == "/ready":
                exchange.answer(200 if self.is_ready else 503, {"ready": self.is_ready})
            elif exchange.path == "/metrics":
                exchange.answer(200, self.counters.lines().encode())
            elif exchange.path == "/v1/models":
                exchange.answer(200, {"object": "list", "data": [{"id": self.options.name}]})
            elif exchange.path == "/v1/suggest":
                self._suggest(exchange)
            elif exchange.path in ("/v1/completions", "/v1/chat/completions"):
                await self._complete(exchange)
            else:
                raise RefusedError(404, f"There is no {exchange.path}.")
        except RefusedError as refusal:
            needs_wait = refusal.status == 429 and self.options.wrong != "no-retry-after"
            error = {"message": str(refusal), "type": "invalid_request_error"}
            wait = "Retry-After: 1\r\n" if needs_wait else ""
            exchange.answer(refusal.status, {"error": error}, wait)

    def _document(self, exchange: Exchange) -> dict[str, Any]:
        try:
            found = json.loads(exchange.body, parse_constant=no_number)
            check(found)
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            status = 500 if self.options.wrong == "500" else 400
            raise RefusedError(status, f"Not a request: {error}.") from None
        return dict(found)

    def _suggest(self, exchange: Exchange) -> None:
        text = self._document(exchange)["text"]
        shown = self._last_suggested if self.options.wrong == "stale" else text
        self._last_suggested = text
        words = [{"word": word(shown, 0, i).strip(), "probability": 0.5 ** (i + 1)} for i in (0, 1)]
        exchange.answer(200, {"suggestions": words})

    async def _complete(self, exchange: Exchange) -> None:
        document = self._document(exchange)
        if not self.is_ready:
            raise RefusedError(503, "The server is not ready.")
        # Counted where it is decided: those of one moment have neither slots nor places yet.
        if self._num_admitted >= self.options.slots + self.options.queue:
            self.counters.rejected += 1
            raise RefusedError(429, f"The queue holds {self.options.queue} requests already.")
        # The end of the connection is noticed while the request waits and while it writes.
        gone = asyncio.ensure_future(exchange.reader.read(1))
        work = asyncio.ensure_future(self._run(exchange, document))
        self._num_admitted += 1
        work.add_done_callback(self._leave)
        await asyncio.wait((gone, work), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            work.cancel()
            self.counters.cancelled += 1
        gone.cancel()
        read, done = await asyncio.gather(gone, work, return_exceptions=True)
        exchange.ahead = read if isinstance(read, bytes) else b""
        if isinstance(done, BaseException):
            raise ConnectionError

    def _leave(self, _work: "asyncio.Future[None]") -> None:
        self._num_admitted -= 1

    async def _run(self, exchange: Exchange, document: dict[str, Any]) -> None:
        self.requests.append(document)
        number = len(self.requests)
        self.counters.queued_requests += 1
        try:
            await self._slots.acquire()
        finally:
            self.counters.queued_requests -= 1
        self.counters.slots_in_use += 1
        try:
            await self._write(exchange, Writing.of(document, exchange.path, number))
            self.counters.finished += 1
        except asyncio.CancelledError:
            if self.options.wrong == "leak":
                self.counters.slots_in_use += 1
            raise
        finally:
            self.counters.slots_in_use -= 1
            self._slots.release()

    async def _write(self, exchange: Exchange, writing: Writing) -> None:
        due = asyncio.get_running_loop().time() + self.options.prefill_seconds
        if self.options.wrong == "compiles" and not self.counters.recompiles:
            self.counters.recompiles, due = 1, due + 1.0
        is_cut = self.options.wrong == "truncated" and writing.number % 5 == 0
        if self.options.wrong == "unseeded":
            writing.seed = time.monotonic_ns()
        for index in range(writing.max_tokens):
            due += self.options.token_seconds if index else 0.0
            await asyncio.sleep(max(0.0, due - asyncio.get_running_loop().time()))
            self.counters.new_tokens += writing.num_samples
            if writing.streams:
                if index == 0:
                    exchange.begin_stream()
                exchange.event(writing.chunk(index))
            if is_cut and index == writing.max_tokens // 2:
                # Not `abort`: what was written would be lost on the way, too.
                exchange.writer.close()
                raise ConnectionError
        if not writing.streams:
            exchange.answer(200, writing.whole(self.options.name))
            return
        if writing.has_usage:
            exchange.event({"choices": [], "usage": writing.usage()})
        exchange.event("[DONE]")
        exchange.end_stream()


@contextlib.contextmanager
def fake_server(**options: Any) -> Iterator[FakeServer]:
    """A server on a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = FakeServer(FakeOptions(**options))
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(_stop_tasks(server), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


async def _stop_tasks(server: FakeServer) -> None:
    assert server._server is not None
    server._server.close()
    tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.sleep(0)


async def _run_until_terminated(options: FakeOptions, port: int) -> None:
    server = FakeServer(options)
    await server.start(port)
    print(f"http://127.0.0.1:{server.port}", flush=True)
    terminated = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, terminated.set)
    await terminated.wait()
    await server.drain()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    for item in fields(FakeOptions):
        flag, kind = "--" + item.name.replace("_", "-"), type(item.default)
        parser.add_argument(flag, dest=item.name, type=kind, default=item.default)
    given = vars(parser.parse_args())
    port = given.pop("port")
    asyncio.run(_run_until_terminated(FakeOptions(**given), port))


if __name__ == "__main__":
    main()
