"""What `/v1/completions` asks of the engine, and what it makes of the engine's events and ends."""

import json
import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby, islice
from typing import Any

import openai
import pytest
from openai import OpenAI

from bluejay.generation.engine_requests import (
    EngineEvent,
    EngineLimits,
    EngineRequest,
    Failed,
    Finished,
    NewTokens,
    PromptProgress,
    TokenScore,
)
from bluejay.generation.sampling_params import SamplingParams
from bluejay.serving.access import make_access
from bluejay.serving.limits import ENGINE_FLAGS, Limits, RequestLimits, WaitLimits
from bluejay.vocab.roles import SpecialRoles
from bluejay.vocab.tokenizer import Tokenizer
from bluejay.vocab.tokenizer_json import build_backend
from serving.fake_engine import Answer, FakeEngine, TinyModel, scripted
from serving.live_server import PATIENCE
from serving.text_server import END, NUM_ROWS, TextServer, serve_answers, small_tokenizer
from tokenizers_for_tests import small_document

TOKENIZER = small_tokenizer()
LONG = TOKENIZER.encode("abcdefghij" * 150)


@pytest.fixture(scope="module")
def parrot() -> Iterator[tuple[TextServer, FakeEngine]]:
    """A server that says what it was told: the prompt's ids behind the document start."""

    def repeat(request: EngineRequest) -> Iterator[EngineEvent]:
        [prompt] = request.prompts
        yield from scripted([i for i in prompt if i != END])(request)

    with serve_answers(repeat) as found:
        yield found


def wait_for(condition: Any) -> None:
    """Wait until something is true, on a machine that may stand still."""
    pause = threading.Event()
    for _ in range(int(PATIENCE * 100)):
        if condition():
            return
        pause.wait(0.01)
    raise AssertionError("it did not come true")


def asked(found: tuple[TextServer, FakeEngine], prompt: Any = "abc", **body: Any) -> EngineRequest:
    """What a body asks of the engine."""
    server, engine = found
    answer = server.post("/v1/completions", **({"prompt": prompt} | body))
    assert answer.status == 200, answer.body
    return engine.requests[-1]


PARAMETERS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "typical_p": 1.0}),
    ({"temperature": 0}, {"temperature": 0.0}),
    ({"temperature": 2}, {"temperature": 2.0}),
    ({"top_p": 0.5}, {"top_p": 0.5}),
    ({"top_k": 7}, {"top_k": 7}),
    ({"min_p": 0.1}, {"min_p": 0.1}),
    ({"typical_p": 0.9}, {"typical_p": 0.9}),
    ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
    ({"presence_penalty": -2}, {"presence_penalty": -2.0}),
    ({"frequency_penalty": 0.5}, {"frequency_penalty": 0.5}),
    ({"seed": 2**63 - 1}, {"seed": 2**63 - 1}),
    ({"logit_bias": {"5": -100, "259": 1.5}}, {"logit_bias": {5: -100.0, 259: 1.5}}),
]


@pytest.mark.parametrize(("body", "expected"), PARAMETERS, ids=str)
def test_parameters_of_sampling_reach_the_engine(
    parrot: tuple[TextServer, FakeEngine], body: dict[str, Any], expected: dict[str, Any]
) -> None:
    sampling = asked(parrot, **({"seed": 1} | body)).sampling
    assert sampling == replace(SamplingParams(seed=1), **expected)


def test_neutral_values_of_other_samplers_are_taken(
    parrot: tuple[TextServer, FakeEngine],
) -> None:
    neutral = {"dry_multiplier": 0, "xtc_probability": 0.0, "mirostat": 0, "tfs": 1, "top_a": 0}
    how = {"dry_base": 1.75, "xtc_threshold": 0.1, "mirostat_tau": 5, "dynatemp_range": 0}
    assert asked(parrot, seed=1, **neutral, **how).sampling == SamplingParams(seed=1)


def test_the_prompt_and_what_ends_the_text_reach_the_engine(
    parrot: tuple[TextServer, FakeEngine],
) -> None:
    request = asked(parrot, max_tokens=3, logprobs=4)
    assert request.prompts == [(END, *TOKENIZER.encode("abc"))]
    assert request.stop_ids == frozenset([END])
    assert request.max_tokens == 3
    assert request.num_alternatives == 4
    assert not request.scores_prompt
    assert request.adapter is None
    assert asked(parrot, [5, 6]).prompts == [(5, 6)]
    assert asked(parrot, max_tokens=0, echo=True).scores_prompt


def test_each_sample_has_its_number_and_all_one_seed(
    parrot: tuple[TextServer, FakeEngine],
) -> None:
    _, engine = parrot
    asked(parrot, ["ab", "cd"], n=3)
    found = engine.requests[-6:]
    assert [r.sample_index for r in found] == [0, 1, 2] * 2
    assert [r.prompts[0] for r in found] == [
        (END, *TOKENIZER.encode(text)) for text in ("ab", "cd") for _ in range(3)
    ]
    assert len({r.sampling.seed for r in found}) == 1


def test_a_prompt_is_scored_once_for_all_its_samples(
    parrot: tuple[TextServer, FakeEngine],
) -> None:
    _, engine = parrot
    asked(parrot, n=3, echo=True)
    assert [r.scores_prompt for r in engine.requests[-3:]] == [True, False, False]
    before = len(engine.requests)
    asked(parrot, n=3, echo=True, max_tokens=0)
    assert len(engine.requests) == before + 1


def test_a_gap_is_filled_where_the_model_was_trained_to() -> None:
    document = small_document()
    names = ["<fim_prefix>", "<fim_suffix>", "<fim_middle>"]
    document["added_tokens"] += [
        {"id": 260 + i, "content": name, "special": True} for i, name in enumerate(names)
    ]
    roles = SpecialRoles(document_start=END, stops=frozenset([END]))
    tokenizer = Tokenizer(build_backend(document, where="small"), roles=roles)
    with serve_answers(scripted(LONG), tokenizer=tokenizer) as found:
        around = {"suffix": "<fim_middle>)"}
        before, after = TOKENIZER.encode("f("), TOKENIZER.encode("<fim_middle>)")
        expected = (260, *before, 261, *after, 262)
        assert asked(found, "f(", **around).prompts == [expected]
        assert asked(found, before, **around).prompts == [expected]
        assert asked(found, "f(", suffix="").prompts == [(END, *before)]
        server, _ = found
        for body, param in (
            ({"suffix": "x" * 2100}, "prompt"),
            ({"suffix": "x" * 32769}, "suffix"),
            ({"suffix": ")", "context_policy": "trim"}, "context_policy"),
            ({"suffix": ")", "echo": True}, "echo"),
        ):
            error = server.refusal("/v1/completions", prompt="f(", **body)
            assert (error["status"], error["param"]) == (400, param)


def test_best_of_ranks_by_the_mean_and_not_the_sum() -> None:
    texts = {0: ("a", -1.0), 1: ("bcd", -0.5), 2: ("", 0.0), 3: ("ef", -0.9)}

    def answer(request: EngineRequest) -> Iterator[EngineEvent]:
        text, logprob = texts[request.sample_index]
        for token in TOKENIZER.encode(text):
            yield NewTokens(scores=(TokenScore(id=token, logprob=logprob),))
        yield Finished(reason="stop")

    with serve_answers(answer) as (server, _):
        found = server.client.completions.create(model="small", prompt="a", n=4, best_of=4)
        assert [choice.text for choice in found.choices] == ["a", "bcd", "", "ef"]
        found = server.client.completions.create(model="small", prompt="a", n=3, best_of=4)
        assert [choice.text for choice in found.choices] == ["bcd", "ef", "a"]
        assert found.usage is not None
        assert found.usage.completion_tokens == 6


def test_an_adapter_is_chosen_by_field_or_by_model(
    parrot: tuple[TextServer, FakeEngine],
) -> None:
    assert asked(parrot, adapter="pirate").adapter == "pirate"
    assert asked(parrot, model="pirate").adapter == "pirate"
    assert asked(parrot, model="owner/small").adapter is None


def test_a_long_prompt_is_cut_as_the_client_says(
    parrot: tuple[TextServer, FakeEngine],
) -> None:
    server, _ = parrot
    context = server.service.context_length
    text = "The beginning. " + "x" * 3000
    ids = TOKENIZER.encode(text)
    trimmed = asked(parrot, text, context_policy="trim", max_tokens=48).prompts[0]
    assert list(trimmed) == [END, *ids[-(context - 48 - 1) :]]
    kept = asked(
        parrot, text, context_policy="keep", context_keep="The beginning.", max_tokens=48
    ).prompts[0]
    num_kept = len(TOKENIZER.encode("The beginning."))
    assert list(kept) == [END, *ids[:num_kept], *ids[-(context - 48 - 1 - num_kept) :]]
    by_number = asked(parrot, text, context_policy="keep", context_keep=9, max_tokens=48)
    assert list(by_number.prompts[0][:10]) == [END, *ids[:9]]
    of_ids = asked(parrot, ids, context_policy="trim", max_tokens=48).prompts[0]
    assert list(of_ids) == ids[-(context - 48) :]
    # A prompt that fits is never cut.
    assert len(asked(parrot, "short", context_policy="trim").prompts[0]) == 6


def test_tenants_are_told_apart() -> None:
    access = make_access("127.0.0.1", keys=["one", "two"])
    with serve_answers(scripted(LONG), access=access) as (server, engine):
        for key in ("one", "two", "one"):
            client = server.client.with_options(api_key=key)
            client.completions.create(model="small", prompt="a")
        tenants = [request.tenant for request in engine.requests]
        assert tenants[0] == tenants[2] != tenants[1]
        assert all(tenants)
        with pytest.raises(openai.AuthenticationError) as caught:
            server.client.completions.create(model="small", prompt="a")
        assert caught.value.code == "invalid_api_key"


def test_names_that_are_not_there_are_not_found(parrot: tuple[TextServer, FakeEngine]) -> None:
    server, _ = parrot
    for body, param in (({"model": "gpt-7"}, "model"), ({"adapter": "ninja"}, "adapter")):
        error = server.refusal("/v1/completions", prompt="a", **body)
        assert error["status"] == 404
        assert error["param"] == param
        assert "pirate" in error["message"]
    with pytest.raises(openai.NotFoundError) as caught:
        server.client.completions.create(model="gpt-7", prompt="a")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        server.client.models.retrieve("gpt-7")


def test_cached_tokens_are_reported() -> None:
    with serve_answers(scripted(LONG, num_cached=3)) as (server, _):
        usage = server.client.completions.create(model="small", prompt="abcde", n=2).usage
    assert usage is not None
    assert usage.prompt_tokens_details is not None
    assert usage.prompt_tokens_details.cached_tokens == 3


# Bytes of every kind that UTF-8 tells apart, one token each.
KINDS = list(bytes.fromhex("41 7f 80 8f 90 9f a0 bf c1 c2 df e0 e1 ed ee ef f0 f1 f3 f4 f5 ff"))


def sequences() -> Iterator[list[int]]:
    byte_ids = {data[0]: i for i, data in enumerate(TOKENIZER.token_bytes_table()[:256]) if data}
    kinds = [byte_ids[byte] for byte in KINDS]
    for first in kinds:
        for second in kinds:
            yield [first, second]
    for first in kinds[11:]:
        for second in kinds[2:8]:
            for third in (kinds[0], kinds[2], kinds[7]):
                yield [first, second, third]
    for text in ("é", "€", "🦜", "a🏴‍☠️"):
        found = [byte_ids[byte] for byte in text.encode()]
        yield from (found[:end] for end in range(1, len(found) + 1))


def test_any_bytes_cut_anywhere_are_the_same_streamed_whole_and_decoded(
    parrot: tuple[TextServer, FakeEngine],
) -> None:
    server, _ = parrot
    every = sorted(sequences(), key=len)
    for length, group in groupby(every, key=len):
        for ids in batched(group, 64):
            # More would follow, so it is max_tokens that cuts.
            body = {"prompt": [[*i, *TOKENIZER.encode("x")] for i in ids], "max_tokens": length}
            texts = [""] * len(ids)
            for event in server.client.completions.create(model="small", stream=True, **body):
                texts[event.choices[0].index] += event.choices[0].text
            whole = server.client.completions.create(model="small", **body)
            decoded = [TOKENIZER.decode(i) for i in ids]
            assert [found.text for found in whole.choices] == texts == decoded


def batched(items: Iterable[list[int]], size: int) -> Iterator[list[list[int]]]:
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


def test_tokens_that_are_no_text_are_shown_as_bytes() -> None:
    euro = [TOKENIZER.encode("€")[0]]
    with serve_answers(scripted([*euro, *TOKENIZER.encode("\\")])) as (server, _):
        found = server.client.completions.create(
            model="small", prompt="a", logprobs=0, max_tokens=2
        ).choices[0]
    assert found.text == "\ufffd\\"
    assert found.logprobs is not None
    assert found.logprobs.tokens == ["bytes:\\xe2", "\\"]


def test_a_stop_string_ends_the_work_at_once() -> None:
    is_ahead = threading.Event()

    def answer(request: EngineRequest) -> Iterator[EngineEvent]:
        events = scripted(LONG)(request)
        yield from islice(events, 3)  # the prompt and "ab"
        is_ahead.wait(0.1)  # until those are read, so that "c" is news of its own
        yield next(events)
        is_ahead.wait(10)
        yield from events

    with serve_answers(answer) as (server, engine):
        found = server.client.completions.create(
            model="small", prompt="a", stop="c", max_tokens=1500
        )
        assert found.choices[0].text == "ab"
        assert found.choices[0].finish_reason == "stop"
        assert engine.cancelled == engine.requests
        is_ahead.set()
        server.client.completions.create(model="small", prompt="a", logprobs=1, max_tokens=3)
        assert engine.num_made == 3 + 3


@pytest.mark.parametrize("stream", [False, True])
def test_who_hangs_up_is_worked_for_no_longer(stream: bool) -> None:
    with serve_answers(scripted(LONG)) as (server, engine):
        engine.hold()
        with server.raw.connect() as connection:
            body = {"prompt": "a", "n": 2, "max_tokens": 1500, "stream": stream}
            connection.sendall(
                server.raw.encode(
                    "POST",
                    "/v1/completions",
                    headers=[("Content-Type", "application/json")],
                    body=json.dumps(body).encode(),
                )
            )
            wait_for(lambda: len(engine.requests) == 2)
        wait_for(lambda: len(engine.cancelled) == 2)
        engine.release()
        server.client.completions.create(model="small", prompt="a", max_tokens=1)
        assert engine.num_made == 1


def test_who_hangs_up_in_the_middle_is_worked_for_no_longer() -> None:
    is_gone = threading.Event()

    def answer(request: EngineRequest) -> Iterator[EngineEvent]:
        events = scripted(LONG)(request)
        yield from islice(events, 4)
        is_gone.wait(PATIENCE)
        yield from events

    with serve_answers(answer) as (server, engine):
        stream = server.client.completions.create(
            model="small", prompt="a", max_tokens=1500, stream=True
        )
        assert next(iter(stream)).choices[0].text == "a"
        stream.close()
        wait_for(lambda: engine.cancelled)
        is_gone.set()
        server.client.completions.create(model="small", prompt="a", max_tokens=1)
        assert engine.num_made == 3 + 1


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_is_429_and_takes_none_of_the_samples(stream: bool) -> None:
    with serve_answers(scripted(LONG), engine_limits=EngineLimits(queued_requests=4)) as (
        server,
        engine,
    ):
        engine.hold()
        body = {"prompt": ["a"] * 3, "max_tokens": 1, "stream": stream}
        busy = threading.Thread(target=server.post, args=("/v1/completions",), kwargs=body)
        busy.start()
        wait_for(lambda: len(engine.requests) == 3)
        answer = server.post("/v1/completions", **body)
        assert answer.status == 429
        assert answer.headers["retry-after"] == "1"
        assert json.loads(answer.body)["error"]["code"] == "queued_requests_full"
        # The one that found a place gave it back.
        assert engine.cancelled == engine.requests[3:]
        engine.release()
        busy.join()


def test_openais_client_tries_again_by_itself() -> None:
    with serve_answers(scripted(LONG), engine_limits=EngineLimits(queued_requests=1)) as (
        server,
        engine,
    ):
        engine.hold()
        busy = threading.Thread(
            target=server.post, args=("/v1/completions",), kwargs={"prompt": "a", "max_tokens": 1}
        )
        busy.start()
        wait_for(lambda: engine.requests)
        with pytest.raises(openai.RateLimitError):
            server.client.completions.create(model="small", prompt="a")
        threading.Timer(0.2, engine.release).start()
        patient = server.client.with_options(max_retries=5)
        answer = patient.completions.create(model="small", prompt="a", max_tokens=1)
        assert answer.choices[0].text == "a"
        busy.join()


def test_a_call_that_the_queue_could_never_hold_is_refused() -> None:
    small = EngineLimits(queued_requests=4, queued_tokens=100)
    with serve_answers(scripted(LONG), engine_limits=small) as (server, engine):
        many = server.refusal("/v1/completions", prompt=["a"] * 5)
        assert (many["status"], ENGINE_FLAGS["queued_requests"] in many["message"]) == (400, True)
        long = server.refusal("/v1/completions", prompt=["b" * 60] * 2)
        assert (long["status"], ENGINE_FLAGS["queued_tokens"] in long["message"]) == (400, True)
        assert not engine.requests


def failing(after: int, *, is_transient: bool) -> Answer:
    def answer(request: EngineRequest) -> Iterator[EngineEvent]:
        yield PromptProgress(num_done=1, num_tokens=1, num_cached=0)
        for number in range(after):
            yield NewTokens(scores=(TokenScore(id=LONG[number], logprob=-1.0),))
        yield Failed(message="The device is out of memory.", is_transient=is_transient)

    return answer


@pytest.mark.parametrize(("is_transient", "status"), [(True, 503), (False, 500)])
def test_a_sample_that_fails_is_told(is_transient: bool, status: int) -> None:
    with serve_answers(failing(2, is_transient=is_transient)) as (server, engine):
        with pytest.raises(openai.InternalServerError) as caught:
            server.client.completions.create(model="small", prompt="a", n=2)
        assert caught.value.status_code == status
        assert "out of memory" in str(caught.value)
        wait_for(lambda: len(engine.cancelled) == 2)
        # A failure that would come again is not tried again.
        patient = server.client.with_options(max_retries=2)
        before = len(engine.requests)
        with pytest.raises(openai.InternalServerError):
            patient.completions.create(model="small", prompt="a")
        assert len(engine.requests) == before + (3 if is_transient else 1)


def test_a_stream_that_fails_says_so_and_does_not_look_complete() -> None:
    with serve_answers(failing(2, is_transient=True)) as (server, _):
        events = iter(server.client.completions.create(model="small", prompt="a", stream=True))
        assert [next(events).choices[0].text for _ in range(2)] == ["a", "b"]
        with pytest.raises(openai.APIError, match="out of memory"):
            next(events)
        raw = server.post("/v1/completions", prompt="a", stream=True)
        assert raw.status == 200
        frames = raw.body.decode().strip().split("\n\n")
        assert "[DONE]" not in raw.body.decode()
        assert json.loads(frames[-1].removeprefix("data: "))["error"]["type"] == "server_error"


def test_a_whole_stream_ends_with_done(parrot: tuple[TextServer, FakeEngine]) -> None:
    server, _ = parrot
    raw = server.post("/v1/completions", prompt="ab", stream=True, max_tokens=2)
    assert raw.headers["content-type"].startswith("text/event-stream")
    *frames, last = raw.body.decode().strip().split("\n\n")
    assert last == "data: [DONE]"
    assert [json.loads(f.removeprefix("data: "))["choices"][0]["text"] for f in frames] == [
        *"ab",
        "",
    ]


def test_an_engine_that_has_stopped_is_503(parrot: tuple[TextServer, FakeEngine]) -> None:
    server, engine = parrot
    engine.is_stopped = True
    try:
        assert server.refusal("/v1/completions", prompt="a")["status"] == 503
    finally:
        engine.is_stopped = False


@pytest.mark.parametrize("stream", [False, True])
def test_a_deadline_ends_the_request(stream: bool) -> None:
    with serve_answers(scripted(LONG)) as (server, engine):
        engine.hold()
        answer = server.post("/v1/completions", prompt="a", timeout_ms=50, stream=stream)
        assert answer.status == 504  # nothing of the stream had begun
        assert json.loads(answer.body)["error"]["code"] == "timeout"
        wait_for(lambda: engine.cancelled == engine.requests)


def test_a_request_that_waits_too_long_in_the_queue_is_503() -> None:
    limits = Limits(wait=WaitLimits(queue_seconds=0.05, drain_seconds=0.3))
    with serve_answers(scripted(LONG), limits=limits) as (server, engine):
        engine.hold()
        error = server.refusal("/v1/completions", prompt="a")
        assert (error["status"], error["code"]) == (503, "queue_timeout")
        assert "--queue-timeout" in error["message"]
        wait_for(lambda: engine.cancelled == engine.requests)


def test_limits_are_the_servers_and_name_their_flags() -> None:
    small = Limits(
        request=RequestLimits(
            prompt_characters=10, prompts=2, samples=2, sequences=3, stop_strings=1,
            stop_characters=3, logit_bias=1, logprobs=1, grammar_bytes=20,
        ),
        wait=WaitLimits(request_seconds=2, drain_seconds=0.3),
    )  # fmt: skip
    cases: list[tuple[dict[str, Any], str]] = [
        ({"prompt": "a" * 11}, "--max-prompt-characters"),
        ({"prompt": ["a"] * 3}, "--max-prompts"),
        ({"n": 3}, "--max-samples"),
        ({"best_of": 3}, "--max-samples"),
        ({"prompt": ["a", "b"], "n": 2}, "--max-sequences"),
        ({"stop": ["a", "b"]}, "--max-stop-strings"),
        ({"stop": "abcd"}, "--max-stop-characters"),
        ({"logit_bias": {"1": 1, "2": 1}}, "--max-logit-bias"),
        ({"logprobs": 2}, "--max-logprobs"),
        ({"grammar": 'root ::= "aaaaaaaaaaaaaa"'}, "--max-grammar-bytes"),
        ({"timeout_ms": 2001}, "--request-timeout"),
    ]
    with serve_answers(scripted(LONG), limits=small) as (server, engine):
        for body, flag in cases:
            error = server.refusal("/v1/completions", **({"prompt": "a"} | body))
            assert error["status"] == 400
            assert flag in error["message"], error
            assert error["param"] in (*body, None)
        assert not engine.requests


class Times:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.first: list[float] = []
        self.more: list[tuple[float, int]] = []

    def first_token(self, seconds: float) -> None:
        self.first.append(seconds)

    def more_tokens(self, seconds: float, count: int) -> None:
        self.more.append((seconds, count))


def test_times_of_tokens_are_kept_for_each_sample() -> None:
    times = Times()
    with serve_answers(scripted(LONG, per_event=2), times=times) as (server, _):
        server.client.completions.create(model="small", prompt="a", n=3, max_tokens=7)
    assert len(times.first) == 3
    assert sum(count for _, count in times.more) == 3 * 6
    assert all(seconds >= 0 for seconds in [*times.first, *(seconds for seconds, _ in times.more)])


def test_concurrent_calls_get_their_own_texts() -> None:
    model = TinyModel(TOKENIZER, NUM_ROWS)
    with serve_answers(model.answer) as (server, _):
        alone = [ask(server.client, seed) for seed in range(12)]
        together: dict[int, str] = {}
        threads = [
            threading.Thread(
                target=lambda seed=seed: together.update({seed: ask(server.client, seed)})
            )
            for seed in range(12)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [together[seed] for seed in range(12)] == alone


def ask(client: OpenAI, seed: int) -> str:
    answer = client.completions.create(model="small", prompt="a", seed=seed, max_tokens=20)
    return answer.choices[0].text
