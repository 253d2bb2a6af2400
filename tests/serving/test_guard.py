"""Connections that only cost: closed in time, while others are served. Times are short here."""

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from bluejay.serving.server import ServerSettings
from serving.example_routes import Witness, example_routes
from serving.live_server import (
    PATIENCE,
    Raw,
    is_closed,
    live_server,
    make_app,
    quick_limits,
    read_answer,
)

CERTIFICATE = Path(__file__).with_name("localhost.pem")
JSON = [("Content-Type", "application/json")]


@contextlib.contextmanager
def serving(witness: Witness | None = None, **connection: float) -> Iterator[Raw]:
    """A server with these limits of connections."""
    limits = quick_limits(connection)
    with live_server(make_app(example_routes(witness), limits=limits)) as listening:
        yield Raw(port=listening.port)


def test_half_a_header_is_closed_after_its_time() -> None:
    with serving(header_seconds=0.5) as server:
        for sent in (b"", b"G", b"GET /live HTTP/1.1\r\nHost: localhost\r\nX-A:"):
            with server.connect() as connection:
                start = time.monotonic()
                connection.sendall(sent)
                assert is_closed(connection)
                assert time.monotonic() - start > 0.4


def test_a_header_that_drips_is_closed_as_well() -> None:
    with serving(header_seconds=0.5) as server, server.connect() as connection:
        start = time.monotonic()
        with contextlib.suppress(ConnectionError):
            for byte in b"GET /live HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 10_000:
                connection.sendall(bytes([byte]))
                time.sleep(0.02)
                assert time.monotonic() - start < PATIENCE
        assert is_closed(connection)


def test_a_header_that_drips_behind_an_answer_is_closed_as_well() -> None:
    with serving(header_seconds=0.5, idle_seconds=50) as server, server.connect() as connection:
        connection.sendall(server.encode("GET", "/live"))
        assert read_answer(connection).status == 200
        connection.sendall(b"GET /live HT")
        assert is_closed(connection)


def test_silence_between_requests_is_closed_later() -> None:
    with serving(header_seconds=0.3, idle_seconds=1.5) as server, server.connect() as connection:
        for pause in (0.0, 0.6):
            time.sleep(pause)
            connection.sendall(server.encode("GET", "/live"))
            assert read_answer(connection).status == 200
        assert is_closed(connection)


def test_a_slow_body_is_refused() -> None:
    with serving(body_seconds=0.5) as server, server.connect() as connection:
        headers = [*JSON, ("Content-Length", "100")]
        connection.sendall(server.encode("POST", "/v1/echo", headers=headers, body=b"{"))
        answer = read_answer(connection)
        assert answer.status == 408
        assert "0.5 s" in json.loads(answer.body)["error"]["message"]
        assert "--body-timeout" in json.loads(answer.body)["error"]["message"]
        assert is_closed(connection)


def test_a_body_nobody_reads_does_not_keep_the_connection() -> None:
    """The answer to a refused request comes although its body does not."""
    with serving(body_seconds=0.5) as server, server.connect() as connection:
        headers = [*JSON, ("Content-Length", "100")]
        connection.sendall(server.encode("POST", "/nothing", headers=headers, body=b"{"))
        answer = read_answer(connection)
        assert answer.status == 404
        assert answer.headers["connection"] == "close"
        assert is_closed(connection)


def test_a_refused_body_is_taken_so_that_the_reason_arrives() -> None:
    body = b"x" * 3_000_000
    with serving() as server:
        for path, headers, status in (("/nothing", JSON, 404), ("/v1/echo", [], 415)):
            with server.connect() as connection:
                connection.sendall(server.encode("POST", path, headers=headers, body=body))
                assert read_answer(connection).status == status


def test_300_half_open_connections_do_not_hurt_8_good_clients() -> None:
    """More than the limit of 256: the oldest ones that ask nothing make room."""
    with serving(header_seconds=2.0) as server, contextlib.ExitStack() as stack:
        slow = [stack.enter_context(server.connect()) for _ in range(300)]
        for number, connection in enumerate(slow):
            with contextlib.suppress(ConnectionError):
                connection.sendall(b"GET /live HTTP/1.1\r\nX-A: b"[: number % 25])

        def ask(number: int) -> int:
            body = b'{"max_tokens":%d}' % number
            return sum(server.post("/v1/echo", body).status == 200 for _ in range(5))

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, range(8))) == [5] * 8
        assert all(is_closed(connection) for connection in slow)


def test_500_idle_connections_do_not_hurt() -> None:
    with serving(header_seconds=50, idle_seconds=50) as server, contextlib.ExitStack() as stack:
        for _ in range(500):
            stack.enter_context(server.connect())
        assert server.request("GET", "/live").status == 200


def test_too_many_calls_at_once_are_told_so() -> None:
    witness = Witness()
    with serving(witness, connections=4) as server, contextlib.ExitStack() as stack:
        for _ in range(4):
            busy = stack.enter_context(server.connect())
            busy.sendall(server.encode("POST", "/v1/wait", headers=JSON, body=b"{}"))
            assert witness.started.acquire(timeout=PATIENCE)
        with server.connect() as connection:
            connection.sendall(server.encode("GET", "/live"))
            answer = read_answer(connection)
            assert answer.status == 503
            assert answer.headers["connection"] == "close"
            assert answer.headers["retry-after"] == "1"
            assert "--max-connections" in json.loads(answer.body)["error"]["message"]
            assert is_closed(connection)
        busy.close()
        assert witness.ended.acquire(timeout=PATIENCE)
        assert server.request("GET", "/live").status == 200


def test_a_client_that_does_not_read_is_dropped() -> None:
    """The stream's work ends too, after the time and not when the stream would."""
    witness = Witness()
    body = b'{"count":100000,"size":100000}'
    with serving(witness, blocked_seconds=0.5) as server, server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(server.encode("POST", "/v1/stream", headers=JSON, body=body))
        assert witness.ended.acquire(timeout=PATIENCE)
        assert 0 < len(witness.events) < 1000
        assert server.request("GET", "/live").status == 200


def test_a_client_that_does_not_read_whole_answers_is_dropped() -> None:
    body = b'{"prompt":"' + b"a" * 900_000 + b'"}'
    with serving(blocked_seconds=0.5) as server, server.connect() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        ask = server.encode("POST", "/v1/echo", headers=JSON, body=body)
        connection.settimeout(1.5)
        with contextlib.suppress(TimeoutError, ConnectionError):
            for _ in range(30):
                connection.sendall(ask)
        time.sleep(1.5)
        received = 0
        connection.settimeout(PATIENCE)
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(1 << 20):
                received += len(part)
        assert received < 30 * 900_000
        assert server.request("GET", "/live").status == 200


def test_a_client_that_reads_slowly_gets_everything() -> None:
    with serving(blocked_seconds=5.0) as server, server.connect() as connection:
        body = b'{"count":100,"size":20000}'
        connection.sendall(server.encode("POST", "/v1/stream", headers=JSON, body=body))
        time.sleep(0.5)
        answer = read_answer(connection)
    assert answer.body.count(b"data: {") == 100
    assert answer.body.endswith(b"data: [DONE]\n\n")


def test_a_server_with_a_certificate_speaks_tls_alone() -> None:
    settings = ServerSettings(port=0, certificate=CERTIFICATE, certificate_key=CERTIFICATE)
    app = make_app(example_routes(), limits=quick_limits({"header_seconds": 0.5}))
    context = ssl.create_default_context(cafile=str(CERTIFICATE))
    with live_server(app, settings) as listening:
        server = Raw(port=listening.port)
        assert listening.url.startswith("https://127.0.0.1:")
        with (
            server.connect() as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        ):
            connection.sendall(server.encode("GET", "/live"))
            assert read_answer(connection).status == 200
        for sent in (b"", b"\x16\x03\x01", b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            with server.connect() as plain:
                plain.sendall(sent)
                assert is_closed(plain)


@pytest.mark.parametrize("name", ["connections", "header_seconds", "body_bytes"])
def test_limits_are_positive(name: str) -> None:
    with pytest.raises(ValueError, match="must be more than 0"):
        quick_limits({name: 0})
