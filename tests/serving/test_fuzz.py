"""Thousands of requests made from `/openapi.json`, valid and not: no failure, no surprise, no hang.

The many go to tables behind the real HTTP application; a few hundred to the bundled model.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from schemathesis import GenerationMode

from bluejay.generation.engine_requests import EngineLimits
from bluejay.serving.openapi import openapi_document
from serving.fake_engine import FakeEngine, scripted
from serving.fuzzing import document_of, fuzz, operations
from serving.live_server import Raw, captured_log, make_app, quick_limits
from serving.model_server import ServedModel
from serving.stub_server import every_route, serve_stub
from serving.text_server import text_service

# The server's threads are in this process, and may draw from `random` while a request is made up.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module inside strategies")

LETTERS = scripted([97 + number % 26 for number in range(128)], per_event=128)
LIMITS = EngineLimits(num_slots=4, context_length=256)
LARGE = ("POST /v1/completions", "POST /v1/chat/completions", "POST /v1/responses")
"""Their bodies have many fields, which take schemathesis long to make."""
MODES = tuple(GenerationMode)
LEAST = 5_000


def _described() -> dict[str, Any]:
    """All operations, as the server of this module describes them."""
    engine = FakeEngine(LETTERS, limits=LIMITS)
    try:
        app = make_app(every_route(text_service(engine, limits=quick_limits())))
    finally:
        engine.close()
    return operations(openapi_document(app.routes, needs_key=False))


OPERATIONS = _described()
POSTS = {label: 100 if label in LARGE else 190 for label in OPERATIONS if label.startswith("POST")}
"""How many requests of each mode an operation gets."""


@pytest.fixture(scope="module")
def stub() -> Iterator[Raw]:
    with serve_stub(LETTERS, engine_limits=LIMITS) as (raw, _):
        yield raw


@pytest.fixture(autouse=True)
def nothing_fails_inside() -> Iterator[None]:
    with captured_log() as log:
        yield
    assert " failed: " not in log.getvalue()
    assert "Traceback" not in log.getvalue()


@pytest.mark.parametrize("mode", MODES, ids=[mode.value for mode in MODES])
@pytest.mark.parametrize("label", POSTS)
def test_what_schemathesis_makes_is_answered_as_described(
    stub: Raw, label: str, mode: GenerationMode
) -> None:
    statuses = fuzz(stub, OPERATIONS[label], mode, POSTS[label])
    assert statuses.total() >= POSTS[label]
    assert not any(status >= 500 for status in statuses if status != 504), statuses
    assert stub.request("GET", "/live").status == 200


def test_that_is_five_thousand_requests() -> None:
    assert sum(POSTS.values()) * len(MODES) >= LEAST
    assert len(POSTS) == 15


@pytest.mark.parametrize("label", [label for label in OPERATIONS if label.startswith("GET")])
def test_what_takes_no_body_is_answered_as_described(stub: Raw, label: str) -> None:
    statuses = fuzz(stub, OPERATIONS[label], GenerationMode.POSITIVE, 40)
    assert statuses.total() >= 1
    assert max(statuses) < 500


def test_the_bundled_model_answers_as_described(served_model: ServedModel) -> None:
    statuses: Counter[int] = Counter()
    raw = served_model.raw
    found = operations(document_of(raw))
    assert sorted(found) == sorted(OPERATIONS)
    for label in POSTS:
        for mode in MODES:
            statuses += fuzz(raw, found[label], mode, 12)
    status = served_model.server.status()
    assert (status.is_ready, status.is_failed, status.restarts) == (True, False, 0)
    assert raw.post("/v1/completions", b'{"prompt":"a","max_tokens":1}').status == 200
    assert statuses.total() >= 300
    assert not any(code >= 500 for code in statuses if code != 504), statuses
    assert statuses[200] > 50
