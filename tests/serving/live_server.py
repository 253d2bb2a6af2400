"""A real server on a real socket, in a thread of this process, and bytes sent to it by hand."""

import io
import logging
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from bluejay.serving.access import Access
from bluejay.serving.app import App
from bluejay.serving.limits import ConnectionLimits, Limits, WaitLimits
from bluejay.serving.logs import set_up_logs
from bluejay.serving.routes import Route
from bluejay.serving.server import Listening, ServerSettings, run_server

PATIENCE = 60.0
"""Seconds that a test waits for what should come at once, on a machine that may stand still."""


@contextmanager
def live_server(app: App, settings: ServerSettings | None = None) -> Iterator[Listening]:
    """`app` behind 127.0.0.1 and a free port, until the block ends.

    What the server thread raises is raised here.
    """
    found: list[Listening] = []
    problems: list[BaseException] = []
    is_listening = threading.Event()

    def listening(server: Listening) -> None:
        found.append(server)
        is_listening.set()

    def run() -> None:
        try:
            run_server(app, settings or ServerSettings(port=0), on_listening=listening)
        except BaseException as error:
            problems.append(error)
        finally:
            is_listening.set()

    thread = threading.Thread(target=run, name="live-server", daemon=True)
    thread.start()
    assert is_listening.wait(PATIENCE)
    try:
        if found:
            yield found[0]
    finally:
        if found:
            found[0].stop()
        thread.join(PATIENCE)
    if problems:
        raise problems[0]
    assert not thread.is_alive(), "the server does not stop"


def quick_limits(
    connection: dict[str, Any] | None = None, wait: dict[str, Any] | None = None
) -> Limits:
    """The limits with short times, and with those given."""
    times = {"drain_seconds": 0.3} | (wait or {})
    return Limits(connection=ConnectionLimits(**(connection or {})), wait=WaitLimits(**times))


def make_app(routes: Sequence[Route], **given: Any) -> App:
    """An application of `routes` that drains fast."""
    return App(routes, **({"limits": quick_limits(), "access": Access()} | given))


@contextmanager
def captured_log(*, as_json: bool = False) -> Iterator[io.StringIO]:
    """What the server and its engine write into their log meanwhile."""
    loggers = [logging.getLogger(name) for name in ("bluejay.serving", "bluejay.generation")]
    before = [(logger.handlers[:], logger.propagate, logger.level) for logger in loggers]
    stream = io.StringIO()
    set_up_logs(stream, as_json=as_json)
    try:
        yield stream
    finally:
        for logger, (handlers, propagate, level) in zip(loggers, before, strict=True):
            logger.handlers[:], logger.propagate = handlers, propagate
            logger.setLevel(level)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A parsed answer; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    is_whole: bool = True


@dataclass(frozen=True, kw_only=True)
class Raw:
    """Requests written byte by byte to a port."""

    port: int
    defaults: dict[str, str] = field(default_factory=dict)

    def connect(self) -> socket.socket:
        """A connection that does not wait for ever."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE)

    def send(self, data: bytes) -> Answer:
        """Send `data`, and read until the other side closes or the answer is whole."""
        with self.connect() as connection:
            connection.sendall(data)
            return read_answer(connection)

    def request(
        self,
        method: str,
        path: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        host: str | None = None,
    ) -> Answer:
        """Send a request with these headers besides Host, Content-Length and the defaults."""
        return self.send(self.encode(method, path, headers=headers, body=body, host=host))

    def encode(
        self,
        method: str,
        path: str,
        *,
        headers: Sequence[tuple[str, str]] = (),
        body: bytes | None = None,
        host: str | None = None,
    ) -> bytes:
        """The bytes of the request."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: {host or f'127.0.0.1:{self.port}'}"]
        given = {name.lower() for name, _ in headers}
        lines += [f"{n}: {v}" for n, v in self.defaults.items() if n.lower() not in given]
        lines += [f"{name}: {value}" for name, value in headers]
        if body is not None and not given & {"content-length", "transfer-encoding"}:
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b"")

    def post(self, path: str, body: bytes, **given: Any) -> Answer:
        """A POST of JSON."""
        headers = [("Content-Type", "application/json"), *given.pop("headers", ())]
        return self.request("POST", path, headers=headers, body=body, **given)

    def with_defaults(self, **headers: str) -> "Raw":
        """The same, sending these headers too."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return replace(self, defaults=self.defaults | named)


def read_answer(connection: socket.socket, *, method: str = "POST") -> Answer:
    """One answer from `connection`, whole or cut off. AssertionError for none at all."""
    reader = connection.makefile("rb")
    try:
        line = reader.readline()
        while line.startswith(b"HTTP/1.1 100"):
            reader.readline()
            line = reader.readline()
        assert line.startswith(b"HTTP/1.1 "), f"no answer, but {line!r}"
        headers = dict(_header_lines(reader.readline))
        status = int(line.split()[1])
        if method == "HEAD" or status == 204:
            return Answer(status=status, headers=headers, body=b"")
        if headers.get("transfer-encoding") == "chunked":
            body, is_whole = _chunked(reader)
        else:
            length = int(headers["content-length"])
            body = reader.read(length)
            is_whole = len(body) == length
        return Answer(status=status, headers=headers, body=body, is_whole=is_whole)
    finally:
        reader.close()


def _header_lines(read_line: Callable[[], bytes]) -> Iterator[tuple[str, str]]:
    while line := read_line().strip():
        name, _, value = line.decode("latin-1").partition(":")
        yield name.strip().lower(), value.strip()


def _chunked(reader: io.BufferedReader) -> tuple[bytes, bool]:
    body = b""
    while size := reader.readline().strip():
        chunk = reader.read(int(size, 16))
        reader.readline()
        if not chunk:
            return body, True
        body += chunk
    return body, False


def is_closed(connection: socket.socket, *, within: float = PATIENCE) -> bool:
    """Whether the other side closes within so many seconds, whatever it sends before."""
    connection.settimeout(within)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return True
