"""A Hugging Face hub on this machine, with the few answers that downloading a model takes."""

import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

from fake_wheel import serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".gguf")


@dataclass
class FakeHub:
    """What the hub holds, and what was asked; `stop_after` ends the next large answer early."""

    address: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    stop_after: int | None = None
    hold: bool = False
    stopped: threading.Event = field(default_factory=threading.Event)
    corrupt: bool = False

    def large_gets(self) -> list[str]:
        """The downloads of weights, each with its Range."""
        return [text for text in self.requests if text.startswith("GET") and "resolve" in text]


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def fake_hub(repositories: Mapping[str, dict[str, bytes]]) -> Iterator[FakeHub]:
    """Serve repositories; `owner/gated` and everything that is not there answer as the hub does."""
    hub = FakeHub(repositories=dict(repositories))
    with serving(type("Handler", (HubHandler,), {"hub": hub})) as hub.address:
        yield hub


class HubHandler(http.server.BaseHTTPRequestHandler):
    """Answers for the hub of its class."""

    hub: ClassVar[FakeHub]
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/(.+))?", path):
            self.describe(match[1], match[2], match[3])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.send_file(match[1], match[3], body=body)
        else:
            self.refuse(404, "EntryNotFound")

    def describe(self, repository: str, kind: str | None, revision: str | None) -> None:
        if repository == "owner/gated":
            self.refuse(403, "GatedRepo")
        elif repository == "owner/broken":
            self.refuse(500, "")
        elif repository not in self.hub.repositories:
            self.refuse(404, "RepoNotFound")
        elif revision not in (None, "main", COMMIT):
            self.refuse(404, "RevisionNotFound")
        else:
            files = self.hub.repositories[repository]
            tree = kind == "tree"
            listed = [describe_file(name, data, tree=tree) for name, data in files.items()]
            info = {"id": repository, "modelId": repository, "sha": COMMIT, "siblings": listed}
            self.send_json(listed if tree else info)

    def send_file(self, repository: str, name: str, *, body: bool) -> None:
        data = self.hub.repositories[repository][name]
        self.send_response(206 if (start := self.range_start()) else 200)
        self.send_header("ETag", f'"{etag(name, data)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if body:
            self.send_data(data[start:], large=name.endswith(LARGE))

    def send_data(self, data: bytes, *, large: bool) -> None:
        if self.hub.corrupt and large:
            data = b"X" + data[1:]
        try:
            if large and self.hub.stop_after is not None:
                self.wfile.write(data[: self.hub.stop_after])
                self.wfile.flush()
                self.hub.stop_after = None
                self.hub.stopped.set()
                if self.hub.hold:
                    threading.Event().wait(0.5)
                self.close_connection = True
            else:
                self.wfile.write(data)
        except OSError:
            return  # the client was killed

    def range_start(self) -> int:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        return int(match[1]) if match else 0

    def send_json(self, document: Any) -> None:
        text = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_arguments: object) -> None:
        return


def describe_file(name: str, data: bytes, *, tree: bool) -> dict[str, Any]:
    """A file as the listings of the hub show it; large ones have their SHA-256."""
    described: dict[str, Any] = {"size": len(data)}
    if tree:
        described |= {"type": "file", "path": name, "oid": etag(name, data)}
    else:
        described |= {"rfilename": name, "blobId": etag(name, data)}
    if name.endswith(LARGE):
        pointer = {"size": len(data), "pointerSize": 134}
        described["lfs"] = pointer | {"oid" if tree else "sha256": sha256(data)}
    return described


def etag(name: str, data: bytes) -> str:
    return sha256(data) if name.endswith(LARGE) else hashlib.sha1(data).hexdigest()
