"""What GPT-J's first servers did wrong, one test each: none of it may happen here.

They are `device_serve.py` and `docker/` of mesh-transformer-jax (commit f8315e3); each test says
what theirs did. M11 to M15 are about checkpoints, and tested there.
"""

import contextlib
import gc
import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import pytest

from bluejay.core import failpoints
from bluejay.core.errors import UsageError
from bluejay.generation.engine_requests import EngineLimits, EngineRequest
from bluejay.generation.engine_samples import Sample
from bluejay.serving.access import make_access
from bluejay.serving.exchange import Exchange
from bluejay.serving.record import RequestRecord
from bluejay.serving.routes import Call
from bluejay.serving.samples import SampleRun
from bluejay.serving.server import ServerSettings
from bluejay.vocab.tokenizer import Tokenizer
from serving.fake_engine import FakeEngine, scripted
from serving.live_server import PATIENCE, Answer, Raw, captured_log, quick_limits, read_answer
from serving.model_server import ServedModel, serve_model
from serving.stub_server import serve_stub

COMPLETIONS = "/v1/completions"
SECRET = "xylophone"
JSON = [("Content-Type", "application/json")]
LETTERS = scripted([97 + number % 26 for number in range(128)])


def post(raw: Raw, path: str = COMPLETIONS, **body: Any) -> Answer:
    return raw.post(path, json.dumps(body).encode())


def choices(answer: Answer) -> list[dict[str, Any]]:
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = json.loads(answer.body)["choices"]
    return found


def error(answer: Answer) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(answer.body)["error"]
    return found


@pytest.fixture
def stub() -> Iterator[tuple[Raw, FakeEngine]]:
    with serve_stub(LETTERS) as found:
        yield found


def test_m1_top_k_leaves_k_tokens(served_model: ServedModel) -> None:
    """Theirs masked with the token's own number: id 0 times 1e10 is 0, so it always survived, and
    `top_k=5` kept six."""
    seen: set[str] = set()
    for seed in range(12):
        asked = {"prompt": "The", "max_tokens": 1, "n": 8, "temperature": 2, "seed": seed}
        for choice in choices(post(served_model.raw, top_k=3, logprobs=3, **asked)):
            [token], [top] = choice["logprobs"]["tokens"], choice["logprobs"]["top_logprobs"]
            assert len(top) == 3, "what was drawn is not among the three likeliest"
            seen.add(token)
    assert len(seen) == 3


def test_m2_unknown_missing_and_wrong_fields_are_named(stub: tuple[Raw, FakeEngine]) -> None:
    """Theirs answered 500 by a KeyError for a missing field, and by float("x") for a wrong one."""
    for path, body, param in (
        (COMPLETIONS, {"prompt": "a", "top": 1}, "top"),
        (COMPLETIONS, {"prompt": "a", "temperature": "x"}, "temperature"),
        (COMPLETIONS, {"prompt": "a", "top_p": None, "max_tokens": "512"}, "max_tokens"),
        ("/v1/chat/completions", {}, "messages"),
        ("/v1/embeddings", {}, "input"),
        ("/v1/suggest", {}, "text"),
    ):
        answer = post(stub[0], path, **body)
        assert answer.status == 400
        assert error(answer)["param"] == param
        assert param in error(answer)["message"]


def test_m3_a_tokenizer_that_fails_gives_no_text(
    stub: tuple[Raw, FakeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Theirs printed "oops exception", wrote a text from zeros, and answered 200."""

    class Panic(BaseException):
        """As libraries in Rust raise it."""

    def fail(*_: Any, **__: Any) -> NoReturn:
        raise Panic(SECRET)

    raw, engine = stub
    with captured_log() as log:
        monkeypatch.setattr(Tokenizer, "encode", fail)
        answer = post(raw, prompt=SECRET)
        monkeypatch.undo()
        assert post(raw, prompt="a").status == 200
    assert answer.status == 500
    assert error(answer)["code"] == "internal_error"
    assert len(engine.requests) == 1
    assert SECRET not in log.getvalue() + answer.body.decode()


def test_m4_a_full_queue_is_429_and_nobody_waits_for_ever() -> None:
    """Theirs answered 200 with {"error": "queue full"}, and waited for answers without a bound."""
    limits = quick_limits(wait={"queue_seconds": 0.5})
    engine_limits = EngineLimits(queued_requests=2)
    with serve_stub(LETTERS, engine_limits=engine_limits, limits=limits) as (raw, engine):
        engine.hold()
        with ThreadPoolExecutor(2) as pool:
            waiting = [pool.submit(post, raw, prompt="a") for _ in range(2)]
            deadline = time.monotonic() + PATIENCE
            while engine.status().queued_requests < 2:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            refused = post(raw, prompt="b")
            late = [one.result(PATIENCE) for one in waiting]
        engine.release()
    assert refused.status == 429
    assert int(refused.headers["retry-after"]) >= 1
    assert error(refused)["type"] == "rate_limit_error"
    assert [answer.status for answer in late] == [503, 503]
    assert {error(answer)["code"] for answer in late} == {"queue_timeout"}


def test_m5_a_request_says_how_much_where_it_ends_and_how_it_comes(
    served_model: ServedModel,
) -> None:
    """Theirs always wrote 256 tokens and filled batches with the prompt "whatever"; there was no
    stop, seed, stream, n, logprobs or cancel."""
    raw = served_model.raw
    asked: dict[str, Any] = {"prompt": "The sea", "max_tokens": 20, "seed": 4}
    whole = post(raw, **asked)
    [first] = choices(whole)
    usage = json.loads(whole.body)["usage"]
    assert usage["completion_tokens"] <= 20
    assert usage["prompt_tokens"] == len(served_model.model.prompt_ids("The sea"))
    assert choices(post(raw, **asked)) == [first]
    [stopped] = choices(post(raw, **asked, stop=first["text"][5:7]))
    assert stopped["text"] == first["text"][: first["text"].index(first["text"][5:7])]
    assert stopped["finish_reason"] == "stop"
    assert len(choices(post(raw, **asked, n=3, logprobs=2))) == 3
    events = post(raw, **asked, stream=True).body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    pieces = [json.loads(event[6:])["choices"][0]["text"] for event in events[:-2]]
    assert "".join(pieces) == first["text"]
    before = served_model.server.status().cancelled
    with raw.connect() as connection:
        body = json.dumps(asked | {"max_tokens": 240, "logit_bias": {"0": -100}, "n": 4}).encode()
        connection.sendall(raw.encode("POST", COMPLETIONS, headers=JSON, body=body))
        time.sleep(0.05)
    deadline = time.monotonic() + PATIENCE
    while served_model.server.status().slots_in_use:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert served_model.server.status().cancelled >= before


def test_m6_only_this_machine_is_let_in_by_default(stub: tuple[Raw, FakeEngine]) -> None:
    """Theirs bound 0.0.0.0, let every page of the web in (CORS *), in docker with credentials."""
    assert ServerSettings().host == "127.0.0.1"
    with pytest.raises(UsageError, match="API key"):
        make_access("0.0.0.0")
    raw, _ = stub
    foreign = [*JSON, ("Origin", "https://evil.example")]
    for answer in (
        raw.request("POST", COMPLETIONS, headers=foreign, body=b'{"prompt":"a"}'),
        raw.request("OPTIONS", COMPLETIONS, headers=foreign),
        raw.request("GET", "/v1/models", host="evil.example"),
    ):
        assert answer.status == 403
        assert not [name for name in answer.headers if name.startswith("access-control")]
    assert not [name for name in post(raw, prompt="a").headers if name.startswith("access-control")]


def test_m7_nobody_reads_anybody_elses_text() -> None:
    """Theirs numbered requests 1, 2, 3 and gave any completion to whoever asked for its number."""
    access = make_access("127.0.0.1", keys=["key-a", "key-b"])
    with serve_stub(LETTERS, access=access) as (raw, _):
        ann, ben = (raw.with_defaults(X_API_Key=key) for key in ("key-a", "key-b"))
        ids = [json.loads(post(ann, prompt="a").body)["id"] for _ in range(20)]
        assert len({*ids}) == 20
        assert all(len(number) >= 32 for number in ids)
        assert len({number[:12] for number in ids}) == 20  # no counter stands before the rest
        assert ben.request("GET", f"{COMPLETIONS}/{ids[0]}").status == 404
        # The one interface that looks at a text by a key: Kobold's, whose keys are easily guessed.
        own = post(ann, "/api/v1/generate", prompt="a", max_length=5, genkey="K1")
        assert own.status == 200
        assert json.loads(own.body)["results"][0]["text"]
        found = [
            json.loads(post(who, "/api/extra/generate/check", genkey="K1").body)["results"][0]
            for who in (ann, ben)
        ]
    assert found[0]["text"] == json.loads(own.body)["results"][0]["text"]
    assert found[1]["text"] == ""


OF_A_REQUEST = (Call, EngineRequest, Exchange, RequestRecord, Sample, SampleRun)


def alive() -> Counter[str]:
    """What there is of requests."""
    gc.collect()
    return Counter(type(one).__name__ for one in gc.get_objects() if type(one) in OF_A_REQUEST)


def test_m8_nothing_is_kept_of_a_request_and_no_batch_is_too_large(
    served_model: ServedModel,
) -> None:
    """Theirs never freed its table of requests, and let a batch exceed its compiled size."""
    raw, engine = served_model.raw, served_model.server.engine
    bodies: list[dict[str, Any]] = [
        {"prompt": "a", "max_tokens": 8, "n": 3},
        {"prompt": "b", "max_tokens": 8, "stream": True},
        {"prompt": "c", "max_tokens": 0, "echo": True, "logprobs": 1},
        {"prompt": "d", "max_tokens": -1},
    ]

    def ask(number: int) -> int:
        return post(raw, **bodies[number % len(bodies)]).status

    post(raw, prompt="before", max_tokens=1)
    compiled = served_model.server.status().recompiles
    before = alive()
    most = 0
    with ThreadPoolExecutor(12) as pool:
        asked = [pool.submit(ask, number) for number in range(120)]
        while not all(one.done() for one in asked):
            most = max(most, engine.status().slots_in_use)
            time.sleep(0.001)
    assert Counter(one.result() for one in asked) == {200: 90, 400: 30}
    assert 1 < most <= engine.limits.num_slots
    assert served_model.server.status().recompiles == compiled
    deadline = time.monotonic() + PATIENCE
    while alive() - before:
        # Of the last request the server itself may hold the pieces for a moment.
        assert time.monotonic() < deadline, alive() - before
        time.sleep(0.05)


def test_m9_an_engine_that_dies_is_told_and_nobody_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Theirs lost its only worker thread by an exception, and every later request hung."""
    with serve_model(engine=EngineLimits(num_slots=1, context_length=256)) as served:
        raw = served.raw
        with contextlib.ExitStack() as stack, captured_log() as log:
            streams = [stack.enter_context(raw.connect()) for _ in range(8)]
            for stream in streams:
                body = b'{"prompt":"xylophone","max_tokens":240,"stream":true}'
                stream.sendall(raw.encode("POST", COMPLETIONS, headers=JSON, body=body))
            assert streams[0].recv(15) == b"HTTP/1.1 200 OK"
            monkeypatch.setattr(failpoints, "_passed", Counter[str]())
            monkeypatch.setenv("BLUEJAY_FAILPOINT", "engine-step@1+:full")
            answers = [read_answer(stream) for stream in streams[1:]]
            everything = b""
            while part := streams[0].recv(65_536):
                everything += part
                if b"error" in everything:
                    break
            began = time.monotonic()
            while raw.request("GET", "/ready").status == 200:
                assert time.monotonic() - began < 10  # two seconds, on a machine that is idle
                time.sleep(0.02)
        assert b'"code":"engine_failure"' in everything
        assert b"[DONE]" not in everything
        assert [answer.status for answer in answers] == [503] * 7
        assert raw.request("GET", "/live").status == 200
        late = post(raw, prompt="a")
        assert (late.status, error(late)["code"]) == (503, "failed")
        assert SECRET not in log.getvalue()


def test_m10_no_log_has_a_prompt_its_tokens_or_an_answer(served_model: ServedModel) -> None:
    """Theirs logged the tokens of every prompt at INFO, and ran with `reload=True`."""
    ids = served_model.model.prompt_ids(SECRET)
    with captured_log() as log:
        logging.getLogger("bluejay.serving").setLevel(logging.DEBUG)
        whole = choices(post(served_model.raw, prompt=SECRET, max_tokens=12, seed=1))[0]["text"]
        streamed = post(served_model.raw, prompt=SECRET, max_tokens=12, seed=1, stream=True)
        post(served_model.raw, prompt=SECRET, max_tokens=-1)
        post(served_model.raw, "/tokenize", content=SECRET)
        post(served_model.raw, "/v1/suggest", text=SECRET)
        served_model.raw.request("GET", f"/v1/models/{SECRET}?prompt={SECRET}")
    lines = log.getvalue().replace(f"/v1/models/{SECRET} ", "")
    assert streamed.status == 200
    assert "POST /v1/completions 200" in lines
    assert "POST /v1/completions 400" in lines
    for text in (SECRET, whole, str(ids), str(tuple(ids)), ", ".join(map(str, ids))):
        assert text not in lines
