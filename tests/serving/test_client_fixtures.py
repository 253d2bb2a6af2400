"""What real clients send, as their sources have it, replayed; and what they read in the answers.

`fixtures/*.json` name the client, the commit and the place that each was read in. `reads` are paths
of what that code looks at; in a stream they are looked for in every event.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bluejay.serving.chat import chat_routes
from bluejay.serving.completions import completion_routes
from bluejay.serving.infill import infill_routes
from bluejay.serving.kobold import kobold_routes
from bluejay.serving.models import model_routes
from bluejay.serving.routes import Route
from bluejay.serving.service import TextService
from bluejay.serving.tokens import token_routes
from serving.fake_engine import TinyModel
from serving.live_server import Answer
from serving.route_server import Client, serve_routes
from serving.text_server import NUM_ROWS, small_tokenizer

FIXTURES = sorted((Path(__file__).parent / "fixtures").glob("*.json"))
# KoboldAI Lite's own expression.
LITE_EVENT = re.compile(r"^event: (.*)\ndata: (.*)(\r?\n){2}", re.MULTILINE)


def routes(service: TextService) -> list[Route]:
    makers = (
        *(completion_routes, chat_routes, model_routes, kobold_routes, infill_routes),
        token_routes,
    )
    return [route for make in makers for route in make(service)]


@pytest.fixture(scope="module")
def server() -> Iterator[Client]:
    model = TinyModel(small_tokenizer(), NUM_ROWS)
    with serve_routes(routes, model.answer) as client:
        yield client


def found_at(value: Any, path: str) -> bool:
    """Whether something stands at a path; `\\/` is a slash in a name."""
    for step in re.split(r"(?<!\\)/", path):
        name = step.replace("\\/", "/")
        if isinstance(value, list):
            if not name.isdigit() or int(name) >= len(value):
                return False
            value = value[int(name)]
        elif isinstance(value, dict) and name in value:
            value = value[name]
        else:
            return False
    return True


def send(client: Client, request: dict[str, Any]) -> Answer:
    body = request.get("body")
    data = (
        None if request["method"] == "GET" else b"" if body is None else json.dumps(body).encode()
    )
    headers = list(request.get("headers", {}).items())
    return client.raw.request(request["method"], request["path"], headers=headers, body=data)


def stream_events(answer: Answer, kind: str) -> list[Any]:
    """The data of the events, read as that client reads them."""
    text = answer.body.decode()
    if kind == "kobold":
        found = [match for match in LITE_EVENT.finditer(text) if match[1] == "message"]
        assert len(found) == text.count("data: ")
        return [json.loads(match[2]) for match in found]
    frames = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    assert frames[-1] == "[DONE]"
    return [json.loads(frame) for frame in frames[:-1]]


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_what_a_client_sends_is_answered_with_what_it_reads(server: Client, path: Path) -> None:
    fixture = json.loads(path.read_text())
    assert {"client", "version", "repository", "commit", "file", "where", "note"} <= fixture.keys()
    assert fixture["client"]
    assert fixture["where"]
    for request in fixture["requests"]:
        answer = send(server, request)
        assert answer.status == request.get("status", 200), answer.body
        if kind := request.get("stream"):
            values = stream_events(answer, kind)
            assert len(values) > 1
        else:
            values = [json.loads(answer.body)]
        for value in values:
            missing = [read for read in request["reads"] if not found_at(value, read)]
            assert not missing, (missing, value)
        if "raw" in request:
            assert re.search(request["raw"], answer.body.decode())
        if "says" in request:
            assert request["says"] in answer.body.decode()


def test_a_path_is_found_only_where_something_is() -> None:
    value = {"a": [{"b": None}], "c/d": 1}
    assert found_at(value, "a/0/b")
    assert found_at(value, "c\\/d")
    assert not found_at(value, "a/1/b")
    assert not found_at(value, "c/d")
    assert not found_at(value, "a/0/c")


def test_the_description_has_every_route_of_these_clients(server: Client) -> None:
    paths = server.get("/openapi.json")["paths"]
    for fixture in FIXTURES:
        for request in json.loads(fixture.read_text())["requests"]:
            assert request["method"].lower() in paths[request["path"]]
