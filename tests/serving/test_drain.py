"""A server in a process of its own, told to stop by real signals while it works."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from bluejay.serving.server import EXIT_NOW
from serving.live_server import PATIENCE, Answer, Raw, is_closed, read_answer

SCRIPT = Path(__file__).with_name("slow_server.py")
JSON = [("Content-Type", "application/json")]
ENDLESS = b'{"count":1000000,"pause":0.05}'


@dataclass(frozen=True, kw_only=True)
class Server:
    process: "subprocess.Popen[str]"
    raw: Raw

    def signal(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def wait_until_draining(self) -> None:
        """New work is refused from then on."""
        deadline = time.monotonic() + PATIENCE
        while self.raw.request("GET", "/ready").status == 200:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    def ended(self) -> tuple[int, str, str]:
        """The status, and what was printed after the port."""
        out, err = self.process.communicate(timeout=PATIENCE)
        return self.process.returncode, out, err


@contextlib.contextmanager
def running(drain_seconds: float) -> Iterator[Server]:
    environment = os.environ | {"PYTHONPATH": str(SCRIPT.parent.parent)}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(drain_seconds)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        assert process.stdout is not None
        yield Server(process=process, raw=Raw(port=int(process.stdout.readline())))
    finally:
        process.kill()
        process.communicate()


@contextlib.contextmanager
def asked(server: Server, path: str, body: bytes) -> Iterator[socket.socket]:
    """A connection whose request the server works on."""
    with server.raw.connect() as connection:
        connection.sendall(server.raw.encode("POST", path, headers=JSON, body=body))
        if path == "/v1/stream":
            connection.recv(1, socket.MSG_PEEK)
        else:
            time.sleep(0.2)
        yield connection


def last_frame(answer: Answer) -> str:
    return answer.body.decode().removesuffix("\n\n").split("\n\n")[-1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_streams_finish_while_new_work_is_refused(number: int) -> None:
    with running(PATIENCE) as server:
        with (
            asked(server, "/v1/stream", b'{"count":60,"pause":0.05}') as stream,
            server.raw.connect() as idle,
        ):
            idle.sendall(server.raw.encode("GET", "/live"))
            assert read_answer(idle).status == 200
            server.signal(number)
            server.wait_until_draining()
            refused = server.raw.post("/v1/echo", b"{}")
            idle.sendall(server.raw.encode("POST", "/v1/echo", headers=JSON, body=b"{}"))
            kept = read_answer(idle)
            alive = server.raw.request("GET", "/live")
            answer = read_answer(stream)
        status, out, err = server.ended()
    for late in (refused, kept):
        assert late.status == 503
        assert late.headers["connection"] == "close"
        assert late.headers["x-should-retry"] == "true"
        assert json.loads(late.body)["error"]["code"] == "draining"
    assert alive.status == 200
    assert answer.body.count(b'data: {"number"') == 60
    assert last_frame(answer) == "data: [DONE]"
    assert (status, out, err) == (0, "ended\n", "")


def test_what_outlasts_the_drain_ends_with_an_error_and_never_just_so() -> None:
    with running(1.0) as server:
        with contextlib.ExitStack() as stack:
            streams = [stack.enter_context(asked(server, "/v1/stream", ENDLESS)) for _ in range(32)]
            waiting = stack.enter_context(asked(server, "/v1/wait", b"{}"))
            server.signal()
            answers = [read_answer(stream) for stream in streams]
            whole = read_answer(waiting)
        status, out, err = server.ended()
    for answer in answers:
        assert answer.is_whole
        assert json.loads(last_frame(answer).removeprefix("data: "))["error"]["code"] == "stopped"
    assert whole.status == 503
    assert json.loads(whole.body)["error"]["code"] == "stopped"
    assert (status, out, err) == (0, "ended\n", "")


def test_a_second_signal_ends_at_once() -> None:
    with running(PATIENCE) as server, asked(server, "/v1/stream", ENDLESS) as stream:
        server.signal()
        server.wait_until_draining()
        server.signal()
        status, out, _ = server.ended()
        assert is_closed(stream)
    assert (status, out) == (EXIT_NOW, "")


def test_a_server_without_work_ends_at_once() -> None:
    """Lines that are open, half asked or idle, are no work."""
    with running(PATIENCE) as server, server.raw.connect() as idle, server.raw.connect() as half:
        idle.sendall(server.raw.encode("GET", "/live"))
        assert read_answer(idle).status == 200
        half.sendall(b"GET /live HT")
        start = time.monotonic()
        server.signal()
        status, out, err = server.ended()
        assert time.monotonic() - start < PATIENCE / 2
    assert (status, out, err) == (0, "ended\n", "")


def test_a_client_that_does_not_read_cannot_keep_the_server() -> None:
    with running(0.5) as server, asked(server, "/v1/stream", b'{"count":100000,"size":100000}'):
        time.sleep(0.3)
        server.signal()
        status, out, err = server.ended()
    assert (status, out, err) == (0, "ended\n", "")
