"""`/openapi.json` says what the router does, and tools can read it."""

import json
import re
from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import pytest

from bluejay.serving.access import make_access
from bluejay.serving.app import App
from bluejay.serving.body import decode_body
from serving.example_routes import EchoBody, example_routes
from serving.live_server import Raw, live_server, make_app


@pytest.fixture(scope="module")
def app() -> App:
    return make_app(example_routes())


@pytest.fixture(scope="module")
def server(app: App) -> Iterator[Raw]:
    with live_server(app) as listening:
        yield Raw(port=listening.port)


@pytest.fixture(scope="module")
def document(server: Raw) -> dict[str, Any]:
    answer = server.request("GET", "/openapi.json")
    assert answer.status == 200
    return dict(json.loads(answer.body))


def test_it_lists_the_routes_and_no_others(app: App, document: dict[str, Any]) -> None:
    described = {
        (method.upper(), path) for path, methods in document["paths"].items() for method in methods
    }
    routed = {(route.method, re.sub(r":\w+\}", "}", route.path)) for route in app.routes}
    assert described == routed
    for own in ("/live", "/ready", "/metrics", "/openapi.json"):
        assert ("GET", own) in described


def test_whatever_it_lists_answers(server: Raw, document: dict[str, Any]) -> None:
    """No path is unknown, and every status that comes is announced."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if path == "/v1/wait":
                continue
            given = path.replace("{model}", "a")
            body = b"{}" if "requestBody" in operation else None
            headers = [("Content-Type", "application/json")] if body else []
            answer = server.request(method.upper(), given, headers=headers, body=body)
            assert answer.status in (200, 400)
            assert str(answer.status) in operation["responses"]
            kind = answer.headers["content-type"].partition(";")[0]
            assert kind in operation["responses"][str(answer.status)]["content"]


def test_only_live_needs_no_key_where_there_is_one(document: dict[str, Any]) -> None:
    assert document["security"] == []
    access = make_access("127.0.0.1", keys=["a-key"])
    with live_server(make_app(example_routes(), access=access)) as listening:
        raw = Raw(port=listening.port).with_defaults(X_API_Key="a-key")
        guarded = json.loads(raw.request("GET", "/openapi.json").body)
    assert guarded["security"] == [{"key": []}]
    opened = [
        path
        for path, methods in guarded["paths"].items()
        for operation in methods.values()
        if operation.get("security") == []
    ]
    assert opened == ["/live"]


def test_its_schemas_agree_with_the_server(server: Raw, document: dict[str, Any]) -> None:
    """What the schema of a body allows is taken, and what it forbids is refused."""
    operation = document["paths"]["/v1/echo"]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    validator = jsonschema_rs.validator_for(schema | {"components": document["components"]})
    for body in (
        {},
        {"prompt": "a"},
        {"prompt": [1, "a", [2]]},
        {"prompt": None},
        {"max_tokens": 1.5},
        {"unknown": 1},
        {"options": {"colour": 1}},
        {"options": {"colour": "blue"}},
        {"logit_bias": {"1": 1.5}},
        {"anything": [None]},
    ):
        answer = server.post("/v1/echo", json.dumps(body).encode())
        assert validator.is_valid(body) == (answer.status == 200), body
    envelope = operation["responses"]["400"]["content"]["application/json"]["schema"]
    told = jsonschema_rs.validator_for(envelope | {"components": document["components"]})
    assert told.is_valid(json.loads(server.post("/v1/echo", b"[]").body))
    assert not told.is_valid({"error": "no"})


def test_streams_and_optional_bodies_are_marked(document: dict[str, Any]) -> None:
    operation = document["paths"]["/v1/stream"]["post"]
    assert "text/event-stream" in operation["responses"]["200"]["content"]
    assert operation["requestBody"]["required"] is False
    assert document["paths"]["/v1/echo"]["post"]["requestBody"]["required"] is True
    (parameter,) = document["paths"]["/v1/models/{model}"]["get"]["parameters"]
    assert parameter["name"] == "model"


def test_two_routes_of_one_path_and_method_are_a_mistake() -> None:
    routes = example_routes()
    with pytest.raises(ValueError, match="/v1/echo"):
        make_app([*routes, routes[0]])


def test_an_optional_body_may_be_left_out(server: Raw) -> None:
    assert server.request("POST", "/v1/stream").body.endswith(b"data: [DONE]\n\n")
    assert server.request("POST", "/v1/poke").status == 200
    assert server.request("POST", "/v1/echo").status == 400
    assert decode_body(b"{}", EchoBody) == EchoBody()
