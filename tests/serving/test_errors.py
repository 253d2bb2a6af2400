"""What clients are told, what the log keeps to itself, and limits that name their flags."""

import json
from collections.abc import Iterator
from dataclasses import fields

import pytest

from bluejay.core.errors import CheckpointError, UsageError
from bluejay.generation.engine_requests import EngineLimits, Failed
from bluejay.serving.errors import ApiError, api_error, engine_failure
from bluejay.serving.limits import (
    ENGINE_FLAGS,
    ConnectionLimits,
    DeskLimits,
    RequestLimits,
    WaitLimits,
)
from bluejay.serving.return_times import LATEST
from serving.example_routes import SECRET, example_routes
from serving.live_server import Answer, Raw, captured_log, live_server, make_app


@pytest.fixture(scope="module")
def server() -> Iterator[Raw]:
    with live_server(make_app(example_routes())) as listening:
        yield Raw(port=listening.port)


FAILURES = {
    "usage": (400, "invalid_request_error", "The value 7 is wrong: give 8."),
    "queue": (429, "rate_limit_error", "The queue holds 64 requests."),
    "stopped": (503, "server_error", "The engine has stopped."),
    "late": (504, "server_error", "longer than the server allows"),
    "bug": (500, "server_error", "inside the server"),
    "memory": (500, "server_error", "inside the server"),
    "panic": (500, "server_error", "inside the server"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_failures_have_their_status_and_one_sentence(server: Raw, kind: str) -> None:
    status, name, part = FAILURES[kind]
    with captured_log() as log:
        answer = server.post("/v1/fail", json.dumps({"kind": kind}).encode())
    error = json.loads(answer.body)["error"]
    assert (answer.status, error["type"]) == (status, name)
    assert part in error["message"]
    assert SECRET not in answer.body.decode()
    assert SECRET not in log.getvalue()
    assert "Traceback" not in log.getvalue()


def test_whoever_may_try_again_is_told_so(server: Raw) -> None:
    def headers(kind: str) -> dict[str, str]:
        return server.post("/v1/fail", json.dumps({"kind": kind}).encode()).headers

    for kind in ("queue", "stopped"):
        assert 1 <= int(headers(kind)["retry-after"]) <= LATEST
        assert headers(kind)["x-should-retry"] == "true"
    assert headers("bug")["x-should-retry"] == "false"
    assert "x-should-retry" not in headers("usage")


def test_an_unexpected_failure_is_found_again_by_its_id(server: Raw) -> None:
    with captured_log() as log:
        answer = server.post("/v1/fail", b'{"kind":"bug"}')
        server.request("GET", "/live")
    (line,) = [line for line in log.getvalue().splitlines() if "KeyError" in line]
    assert answer.headers["x-request-id"] in line
    assert "example_routes.py:" in line


def test_failures_of_the_engine_say_whether_they_pass() -> None:
    transient = engine_failure(Failed(message="No memory for this request.", is_transient=True))
    assert (transient.status, transient.headers["x-should-retry"]) == (503, "true")
    lasting = engine_failure(Failed(message="The weights are not finite.", is_transient=False))
    assert (lasting.status, lasting.headers["x-should-retry"]) == (500, "false")


def test_every_error_of_ours_is_the_clients_to_act_on() -> None:
    assert api_error(CheckpointError("There is no adapter 'a'.")).status == 400
    assert api_error(UsageError("no")).status == 400
    told = ApiError(404, "There is no model 'x'.", param="model", code="model_not_found")
    assert api_error(told) is told
    assert told.envelope() == {
        "error": {
            "message": "There is no model 'x'.",
            "type": "invalid_request_error",
            "param": "model",
            "code": "model_not_found",
        }
    }


def test_the_official_client_reads_our_errors(server: Raw) -> None:
    import openai

    address = f"http://127.0.0.1:{server.port}/v1"
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as caught:
            client.post("/echo", cast_to=object, body={"max_token": 1})
        with pytest.raises(openai.RateLimitError):
            client.post("/fail", cast_to=object, body={"kind": "queue"})
    assert caught.value.param == "max_token"
    assert caught.value.code == "unknown_field"


def test_the_log_has_one_line_per_request(server: Raw) -> None:
    with captured_log() as log:
        answers = [
            server.post("/v1/echo", json.dumps({"prompt": SECRET}).encode()),
            server.request("GET", "/v1/a%0aPOST%20/forged%20200?api_key=query"),
        ]
        server.request("GET", "/live")
    first, second = (_line_of(answer, log.getvalue()) for answer in answers)
    assert " POST /v1/echo 200 " in first
    assert " ms 3+2 tokens " in first
    assert r" GET /v1/a\x0aPOST\x20/forged\x20200 404 " in second
    assert SECRET not in log.getvalue()
    assert "query" not in log.getvalue()


def _line_of(answer: Answer, log: str) -> str:
    (line,) = [line for line in log.splitlines() if answer.headers["x-request-id"] in line]
    return line


def test_the_log_can_be_json(server: Raw) -> None:
    with captured_log(as_json=True) as log:
        good = server.post("/v1/echo", b"{}")
        missing = server.request("GET", "/nothing")
        server.request("GET", "/live")
    first = json.loads(_line_of(good, log.getvalue()))
    assert (
        first.items()
        >= {
            "level": "info",
            "method": "POST",
            "path": "/v1/echo",
            "status": 200,
            "prompt_tokens": 3,
            "new_tokens": 2,
        }.items()
    )
    assert json.loads(_line_of(missing, log.getvalue()))["status"] == 404


def test_a_limit_names_itself_the_value_and_its_flag() -> None:
    with pytest.raises(ApiError) as caught:
        RequestLimits().check("stop_strings", 5, param="stop")
    assert caught.value.status == 400
    assert caught.value.param == "stop"
    for part in ("stop has 5 strings", "the limit is 4", "--max-stop-strings"):
        assert part in caught.value.message
    RequestLimits().check("stop_strings", 4, param="stop")
    RequestLimits(stop_strings=5).check("stop_strings", 5, param="stop")


def test_every_limit_has_a_flag_of_its_own() -> None:
    flags = [
        limits.flag(limit.name)
        for limits in (ConnectionLimits(), RequestLimits(), DeskLimits(), WaitLimits())
        for limit in fields(limits)
    ]
    flags += ENGINE_FLAGS.values()
    assert len(set(flags)) == len(flags)
    assert all(flag.startswith("--") for flag in flags)
    assert set(ENGINE_FLAGS) == {limit.name for limit in fields(EngineLimits)}
