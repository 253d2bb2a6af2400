"""What OpenAI's client makes of refusals, and how often and when it tries again."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import openai
import pytest
from openai import OpenAI

from bluejay.generation.engine_requests import (
    EngineRequest,
    EngineStoppedError,
    Listener,
    QueueFullError,
)
from bluejay.serving.access import make_access
from bluejay.serving.completions import completion_routes
from serving.fake_engine import FakeEngine, scripted
from serving.live_server import PATIENCE
from serving.route_server import serve_routes
from serving.text_server import small_tokenizer

KEY = "the-key"
FULL: Callable[[], Exception] = lambda: QueueFullError(
    "The queue holds 64 requests: try again later.", limit="queued_requests"
)
STOPPED: Callable[[], Exception] = lambda: EngineStoppedError("The server is stopping.")


class BusyEngine(FakeEngine):
    """Refuses the first requests with what is in `refusals`, and then works."""

    def __init__(self) -> None:
        super().__init__(scripted(small_tokenizer().encode("good morning")))
        self.refusals: list[Exception] = []
        self.num_asked = 0

    def submit(self, request: EngineRequest, listener: Listener) -> Callable[[], None]:
        self.num_asked += 1
        if self.refusals:
            raise self.refusals.pop()
        return super().submit(request, listener)


@contextmanager
def clients() -> Iterator[tuple[BusyEngine, OpenAI]]:
    engine = BusyEngine()
    access = make_access("127.0.0.1", keys=[KEY])
    try:
        with serve_routes(completion_routes, engine=engine, access=access) as server:
            url = f"http://127.0.0.1:{server.raw.port}/v1"
            with OpenAI(base_url=url, api_key=KEY, timeout=PATIENCE) as client:
                yield engine, client
    finally:
        engine.close()


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[BusyEngine, OpenAI]]:
    with clients() as found:
        yield found


Kind = type[openai.APIStatusError]
REFUSALS: list[tuple[dict[str, Any], str, int, Kind]] = [
    ({"top_p": 7}, KEY, 400, openai.BadRequestError),
    ({}, "another-key", 401, openai.AuthenticationError),
    ({"model": "gpt-7"}, KEY, 404, openai.NotFoundError),
    ({"prompt": "a" * (2 << 20)}, KEY, 413, openai.APIStatusError),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("given", "key", "status", "kind"), REFUSALS, ids=lambda v: str(v)[:40])
def test_what_will_not_change_is_refused_once(
    served: tuple[BusyEngine, OpenAI],
    given: dict[str, Any],
    key: str,
    status: int,
    kind: Kind,
    stream: bool,
) -> None:
    _, client = served
    body: dict[str, Any] = {"model": "small", "prompt": "a", "stream": stream} | given
    sent: list[int] = []
    own = client.with_options(api_key=key, max_retries=2)
    hooks = own._client.event_hooks
    own._client.event_hooks = hooks | {"request": [lambda request: sent.append(1)]}
    try:
        with pytest.raises(kind) as caught:
            own.completions.create(**body)
    finally:
        own._client.event_hooks = hooks
    assert caught.value.status_code == status
    assert caught.value.body is not None
    assert caught.value.message
    assert len(sent) == 1


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("refusal", "status", "kind"),
    [(FULL, 429, openai.RateLimitError), (STOPPED, 503, openai.InternalServerError)],
    ids=["full", "stopping"],
)
def test_what_passes_is_tried_again_when_the_server_says(
    served: tuple[BusyEngine, OpenAI],
    refusal: Callable[[], Exception],
    status: int,
    kind: type[openai.APIStatusError],
    stream: bool,
) -> None:
    engine, client = served
    given: dict[str, Any] = {"model": "small", "prompt": "a", "max_tokens": 4, "stream": stream}
    engine.refusals, engine.num_asked = [refusal()], 0
    started = time.monotonic()
    answer = client.completions.create(**given)
    if stream:
        assert "".join(event.choices[0].text for event in answer)
    # Retry-After is 1 s; left to itself the client would wait 0.375 to 0.5 s.
    assert time.monotonic() - started >= 1
    assert engine.num_asked == 2
    engine.refusals, engine.num_asked = [refusal() for _ in range(4)], 0
    with pytest.raises(kind) as caught:
        client.with_options(max_retries=1).completions.create(**given)
    assert caught.value.status_code == status
    assert caught.value.response.headers["retry-after"] == "1"
    assert engine.num_asked == 2
    with pytest.raises(kind):
        client.with_options(max_retries=0).completions.create(**given)
    assert engine.num_asked == 3
    engine.refusals = []
    assert client.completions.create(**given)
