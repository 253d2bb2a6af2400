"""HTTP/1.1 over bare asyncio protocols: all that a load generator needs, at little CPU time.

The generator shares its cores with the server, so nothing is read twice: what arrives is kept with
its time, and serve_replies.py makes sense of it when the measurement is over.
"""

import asyncio
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

from serve_sockets import StampedSocket, connected

CONNECT_SECONDS = 10.0


@dataclass(frozen=True, kw_only=True)
class Target:
    """A server: http://host:port, or with a path in front of /v1."""

    host: str
    port: int
    prefix: str = ""
    is_tls: bool = False
    key: str = ""

    @classmethod
    def parse(cls, url: str, *, key: str = "") -> Self:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        is_tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SystemExit(f"{url!r} is no address of a server: give one as http://host:port.")
        port = parts.port or (443 if is_tls else 80)
        return cls(host=parts.hostname, port=port, prefix=prefix, is_tls=is_tls, key=key)


@dataclass(frozen=True, kw_only=True)
class Call:
    """One request. `raw` goes out in place of the JSON of `document`, `cancel_after` seconds after
    which the connection is dropped, `key` in place of the target's."""

    path: str
    document: Mapping[str, Any] | None = None
    raw: bytes | None = None
    key: str | None = None
    cancel_after: float | None = None
    timeout: float = 600.0

    @property
    def streams(self) -> bool:
        return bool(self.document and self.document.get("stream"))

    def head_and_body(self, target: Target) -> bytes:
        """The request as it goes over the wire."""
        body = self.raw
        if body is None and self.document is not None:
            body = json.dumps(self.document).encode()
        key = target.key if self.key is None else self.key
        lines = [
            f"{'GET' if body is None else 'POST'} {target.prefix}{self.path} HTTP/1.1",
            f"Host: {target.host}:{target.port}",
            "Accept: */*",
        ]
        if key:
            lines.append(f"Authorization: Bearer {key}")
        if body is not None:
            lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


@dataclass(kw_only=True)
class Reply:
    """What came back, with times of `time.perf_counter`. `failure` is empty for a whole answer of
    any status, else one of refused, reset, timeout, cancelled. `pieces` are parts of the body.
    `first_byte` is when this program came to the first of it, `arrived` when that had come in."""

    call: Call
    sent: float = 0.0
    first_byte: float = 0.0
    arrived: float = 0.0
    ended: float = 0.0
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    failure: str = ""

    @property
    def body(self) -> bytes:
        return b"".join(data for _, data in self.pieces)

    def document(self) -> Any:
        """The body as JSON, or None if it is none."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class Connection(asyncio.Protocol):
    """One connection, with one request on its way at a time."""

    def __init__(self, stamped: StampedSocket | None = None) -> None:
        self.is_open = True
        self._stamped = stamped
        self._transport: asyncio.Transport
        self._reply: Reply | None = None
        self._done: asyncio.Future[None] | None = None
        self._buffer = b""
        self._left: int | None = None  # bytes of the body; None until the head is there
        self._is_chunked = False
        self._closes = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def start(self, reply: Reply, request: bytes) -> asyncio.Future[None]:
        """Send; the future is done when the reply is, whole or not."""
        self._reply, self._buffer, self._left = reply, b"", None
        self._is_chunked = self._closes = False
        self._done = asyncio.get_running_loop().create_future()
        reply.sent = time.perf_counter()
        self._transport.write(request)
        return self._done

    def drop(self, failure: str) -> None:
        """Close at once, whatever was on its way."""
        self._finish(failure)
        self._transport.abort()

    def close(self) -> None:
        self.is_open = False
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        now, reply = time.perf_counter(), self._reply
        if reply is None:
            return
        if not reply.first_byte:
            reply.first_byte = now
            reply.arrived = now if self._stamped is None else self._stamped.arrived
        if self._left is None:
            self._buffer += data
            head, end, data = self._buffer.partition(b"\r\n\r\n")
            if not end:
                return
            self._read_head(head, reply)
            self._buffer = b""
        if self._is_chunked:
            self._read_chunks(data, now, reply)
        elif self._left is not None:
            self._left -= len(data)
            if data:
                reply.pieces.append((now, data))
            if self._left <= 0 and not self._closes:
                self._finish("")

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        # Only a body that is said to end with its connection ends like this.
        is_whole = self._left is not None and self._closes and not self._is_chunked and exc is None
        self._finish("" if is_whole else "reset")

    def _read_head(self, head: bytes, reply: Reply) -> None:
        line, *rest = head.decode("latin-1").split("\r\n")
        reply.status = int(line.split(" ", 2)[1])
        pairs = (item.partition(":")[::2] for item in rest)
        reply.headers = {name.lower(): value.strip() for name, value in pairs}
        self._is_chunked = reply.headers.get("transfer-encoding", "").lower() == "chunked"
        length = reply.headers.get("content-length")
        self._closes = not self._is_chunked and length is None
        self._left = int(length or 0)

    def _read_chunks(self, data: bytes, now: float, reply: Reply) -> None:
        data = self._buffer + data
        while True:
            size_end = data.find(b"\r\n")
            if size_end < 0:
                break
            size = int(data[:size_end].partition(b";")[0], 16)
            end = size_end + 2 + size
            if len(data) < end + 2:
                break
            if size == 0:
                self._finish("")
                return
            reply.pieces.append((now, data[size_end + 2 : end]))
            data = data[end + 2 :]
        self._buffer = data

    def _finish(self, failure: str) -> None:
        reply, done, self._reply = self._reply, self._done, None
        if reply is None or done is None or done.done():
            return
        reply.failure, reply.ended = failure, time.perf_counter()
        if reply.headers.get("connection", "").lower() == "close":
            self.close()
        done.set_result(None)


class Client:
    """Connections to one server, kept open between requests unless `keeps_open` is false."""

    def __init__(self, target: Target, *, keeps_open: bool = True) -> None:
        self.target = target
        self._keeps_open = keeps_open
        self._idle: list[Connection] = []

    async def send(self, call: Call) -> Reply:
        """The reply, whatever it is; nothing is raised and nothing is tried twice, except that a
        kept connection which the server had closed is replaced by a new one."""
        request = call.head_and_body(self.target)
        while True:
            kept = self._kept()
            reply = Reply(call=call, sent=time.perf_counter())
            try:
                async with asyncio.timeout(CONNECT_SECONDS):
                    connection = kept or await self._connect()
            except (OSError, TimeoutError):
                reply.failure, reply.ended = "refused", time.perf_counter()
                return reply
            await self._exchange(connection, reply, request)
            if kept is None or reply.failure != "reset" or reply.first_byte:
                break
        if connection.is_open and not reply.failure and self._keeps_open:
            self._idle.append(connection)
        elif connection.is_open:
            connection.close()
        return reply

    async def _exchange(self, connection: Connection, reply: Reply, request: bytes) -> None:
        call = reply.call
        done = connection.start(reply, request)
        seconds, why = call.timeout, "timeout"
        if call.cancel_after is not None:
            seconds, why = call.cancel_after, "cancelled"
        handle = asyncio.get_running_loop().call_later(seconds, connection.drop, why)
        try:
            await done
        except asyncio.CancelledError:
            connection.drop("cancelled")
            raise
        finally:
            handle.cancel()

    async def get(self, path: str, *, timeout: float = 10.0) -> Reply:
        """The reply to a GET."""
        return await self.send(Call(path=path, timeout=timeout))

    def close(self) -> None:
        """Close what is open and idle."""
        for connection in self._idle:
            connection.close()
        self._idle.clear()

    def _kept(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        return None

    async def _connect(self) -> Connection:
        context = ssl.create_default_context() if self.target.is_tls else None
        stamped = await connected(self.target.host, self.target.port)
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(stamped),
            sock=stamped,
            ssl=context,
            server_hostname=self.target.host if context else None,
        )
        return connection
