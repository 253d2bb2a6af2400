"""The Kobold API on a real socket, before an engine that chooses as the chains of samplers say."""

import json
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from bluejay.generation.engine_requests import (
    EngineEvent,
    EngineLimits,
    EngineRequest,
    Finished,
    NewTokens,
    TokenScore,
)
from bluejay.serving.access import make_access
from bluejay.serving.kobold import kobold_routes
from bluejay.serving.kobold_generations import MOST_KEPT
from serving.fake_engine import FakeEngine, TinyModel, scripted
from serving.live_server import PATIENCE
from serving.route_server import Client, serve_routes
from serving.text_server import END, NUM_ROWS, small_tokenizer

GENERATE = "/api/v1/generate"
STREAM = "/api/extra/generate/stream"
CHECK = "/api/extra/generate/check"
ABORT = "/api/extra/abort"


def ids_of(text: str) -> list[int]:
    return small_tokenizer().encode(text)


@pytest.fixture(scope="module")
def tiny() -> Iterator[Client]:
    model = TinyModel(small_tokenizer(), NUM_ROWS)
    with serve_routes(kobold_routes, model.answer) as client:
        yield client


@pytest.fixture(scope="module")
def speaker() -> Iterator[Client]:
    """Says a text that has a stop sequence, an end and more."""
    said = [*ids_of("the sea is\nUser: blue"), END, *ids_of(" again")]
    with serve_routes(kobold_routes, scripted(said)) as client:
        yield client


class Stepper:
    """An engine's answer that writes one letter for each permit."""

    def __init__(self) -> None:
        self.permits = threading.Semaphore(0)
        self.began = threading.Semaphore(0)

    def __call__(self, request: EngineRequest) -> Iterator[EngineEvent]:
        self.began.release()
        for number in range(request.max_tokens):
            assert self.permits.acquire(timeout=PATIENCE)
            token = ids_of("abcdefghijklmnopqrstuvwxyz"[number % 26])[0]
            yield NewTokens(scores=(TokenScore(id=token, logprob=-0.5),))
        yield Finished(reason="length")


@pytest.fixture
def stepped() -> Iterator[tuple[Client, Stepper]]:
    stepper = Stepper()
    with serve_routes(kobold_routes, stepper) as client:
        try:
            yield client, stepper
        finally:
            stepper.permits.release(10_000)


def result(client: Client, **body: Any) -> dict[str, Any]:
    [found] = client.post(GENERATE, **({"prompt": "the sea"} | body))["results"]
    return dict(found)


def events(data: bytes) -> list[tuple[str, Any]]:
    found = []
    for frame in data.decode().split("\n\n"):
        lines = dict(line.split(": ", 1) for line in frame.splitlines() if not line.startswith(":"))
        if lines:
            found.append((lines["event"], json.loads(lines["data"])))
    return found


def request_of(client: Client, **body: Any) -> EngineRequest:
    """What a body asks of the engine."""
    result(client, **body)
    return client.engine.requests[-1]


@pytest.mark.parametrize("version", ["v1", "latest"])
def test_what_clients_ask_first(tiny: Client, version: str) -> None:
    assert tiny.get(f"/api/{version}/model") == {"result": "owner/small"}
    assert tiny.get(f"/api/{version}/info/version") == {"result": "1.2.5"}
    assert tiny.get(f"/api/{version}/config/max_context_length") == {"value": 2048}
    assert tiny.get(f"/api/{version}/config/max_length") == {"value": 200}
    assert tiny.get("/api/extra/true_max_context_length") == {"value": 2048}
    version_found = tiny.get("/api/extra/version")
    assert version_found["result"] == "KoboldCpp"
    assert version_found["protected"] is False


def test_tokencount_counts_what_a_prompt_has(tiny: Client) -> None:
    ids = ids_of("the sea")
    found = tiny.post("/api/extra/tokencount", prompt="the sea")
    assert found == {"value": len(ids) + 1, "ids": [END, *ids]}
    found = tiny.post("/api/extra/tokencount", prompt="the sea", special=False)
    assert found == {"value": len(ids), "ids": ids}
    assert tiny.post("/api/extra/tokencount", prompt="")["value"] == 1


def test_a_text_is_the_same_at_once_and_in_events(tiny: Client) -> None:
    body = {"prompt": "the sea", "max_length": 40, "sampler_seed": 7, "temperature": 0.8}
    whole = result(tiny, **body)
    answer = tiny.send(STREAM, body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events(answer.body)
    assert {name for name, _ in found} == {"message"}
    assert "".join(data["token"] for _, data in found) == whole["text"]
    assert [data["finish_reason"] for _, data in found][:-1] == [None] * (len(found) - 1)
    assert found[-1][1]["finish_reason"] == whole["finish_reason"]
    assert b"[DONE]" not in answer.body
    assert result(tiny, **body) == whole
    assert result(tiny, **(body | {"sampler_seed": 8}))["text"] != whole["text"]


def test_several_texts(tiny: Client) -> None:
    found = tiny.post(GENERATE, prompt="the sea", n=3, max_length=20, sampler_seed=3)["results"]
    assert len({one["text"] for one in found}) == 3
    again = tiny.post(GENERATE, prompt="the sea", n=3, max_length=20, sampler_seed=3)["results"]
    assert found == again


def test_stop_sequences_are_left_out_or_kept(speaker: Client) -> None:
    stops = ["\nUser:", "xyz"]
    assert result(speaker, stop_sequence=stops)["text"] == "the sea is"
    assert result(speaker, stop_sequence=stops, trim_stop=True)["text"] == "the sea is"
    kept = result(speaker, stop_sequence=stops, trim_stop=False)
    assert (kept["text"], kept["finish_reason"]) == ("the sea is\nUser:", "stop")
    assert result(speaker, stop_sequence="sea")["text"] == "the "
    assert result(speaker, stop_sequence=["", "sea"])["text"] == "the "
    assert result(speaker, singleline=True)["text"] == "the sea is"
    assert len(speaker.engine.cancelled) >= 4


def test_the_end_of_a_text_ends_it_or_not(speaker: Client) -> None:
    assert result(speaker)["text"] == "the sea is\nUser: blue"
    assert result(speaker)["finish_reason"] == "stop"
    assert result(speaker, bypass_eos=True)["text"] == "the sea is\nUser: blue again"
    assert result(speaker, max_length=2)["finish_reason"] == "length"


def test_a_banned_end_never_comes(tiny: Client) -> None:
    lengths = [
        result(
            tiny,
            max_length=60,
            sampler_seed=seed,
            use_default_badwordsids=banned,
            logit_bias={str(END): 8},
        )["completion_tokens"]
        for banned in (False, True)
        for seed in range(1, 9)
    ]
    assert min(lengths[:8]) < 60
    assert lengths[8:] == [60] * 8


def test_memory_stays_when_the_context_is_full(tiny: Client) -> None:
    memory, prompt = "REMEMBER. ", "0123456789" * 30
    short = request_of(tiny, memory=memory, prompt="abc", max_length=5)
    assert list(short.prompts[0]) == [END, *ids_of(memory + "abc")]
    cut = request_of(
        tiny, memory=memory, prompt=prompt, max_length=20, max_context_length=100
    ).prompts[0]
    assert len(cut) == 80
    assert list(cut[:11]) == [END, *ids_of(memory)]
    assert small_tokenizer().decode(cut[11:]) == prompt[-69:]
    without = request_of(tiny, prompt=prompt, max_length=20, max_context_length=100).prompts[0]
    assert small_tokenizer().decode(without[1:]) == prompt[-79:]
    # More context than there is means all of it.
    all_of_it = request_of(
        tiny, prompt=prompt * 10, max_length=48, max_context_length=8192
    ).prompts[0]
    assert len(all_of_it) == 2000


def test_the_context_policy_of_a_text_that_does_not_fit(tiny: Client) -> None:
    memory, prompt = "REMEMBER. ", "0123456789" * 30
    given = {"memory": memory, "prompt": prompt, "max_length": 20, "max_context_length": 100}
    kept = request_of(tiny, **given, context_policy="keep").prompts[0]
    assert kept == request_of(tiny, **given).prompts[0]
    trimmed = request_of(tiny, **given, context_policy="trim").prompts[0]
    assert small_tokenizer().decode(trimmed[1:]) == prompt[-79:]
    error = tiny.refusal(GENERATE, **given, context_policy="refuse")
    assert (error["status"], error["param"]) == (400, "prompt")
    assert "context of 100 tokens" in error["message"]
    assert request_of(tiny, prompt="abc", context_policy="refuse").prompts[0]


def test_an_empty_prompt_begins_a_document(tiny: Client) -> None:
    assert list(request_of(tiny, prompt="", max_length=3).prompts[0]) == [END]


def test_log_probabilities_come_with_the_text(tiny: Client) -> None:
    found = result(tiny, max_length=6, sampler_seed=2, logprobs=True, genkey="K1")
    content = found["logprobs"]["content"]
    assert "".join(one["token"] for one in content) == found["text"]
    assert all(len(one["top_logprobs"]) == 5 for one in content)
    later = tiny.post("/api/extra/last_logprobs", genkey="K1")
    assert later == {"logprobs": found["logprobs"]}


def test_a_grammar_holds(tiny: Client) -> None:
    for seed in range(1, 6):
        found = result(
            tiny,
            grammar='root ::= "the " ("sea" | "sky") " is " [a-z]{3,6} "."',
            max_length=60,
            sampler_seed=seed,
            rep_pen=1.1,
            top_k=100,
        )
        assert re.fullmatch(r"the (sea|sky) is [a-z]{3,6}\.", found["text"])


MODEL = TinyModel(small_tokenizer(), NUM_ROWS)


@pytest.fixture(scope="module")
def chains() -> Iterator[tuple[Client, list[set[int]]]]:
    """Keeps what each request's chain leaves of the tiny model's first choice."""
    left: list[set[int]] = []

    def answer(request: EngineRequest) -> Iterator[EngineEvent]:
        assert request.combine is not None
        logits = MODEL.logprobs(request.prompts[0][-1])[None].astype(np.float32)
        left.append(set(np.flatnonzero(request.combine(logits) > -np.inf).tolist()))
        yield Finished(reason="length")

    with serve_routes(kobold_routes, answer) as client:
        yield client, left


def left_of(chains: tuple[Client, list[set[int]]], **body: Any) -> set[int]:
    client, left = chains
    result(client, **body)
    return left[-1]


def test_filters_run_in_the_order_that_is_asked_for(
    chains: tuple[Client, list[set[int]]],
) -> None:
    likeliest = MODEL.logprobs(ids_of("a")[-1]).argsort()[::-1]
    assert left_of(chains, prompt="a", top_k=3) == set(likeliest[:3].tolist())
    hot = {"prompt": "a", "temperature": 5.0, "top_p": 0.5}
    last = left_of(chains, **hot, sampler_order=[6, 0, 1, 3, 4, 2, 5])
    first = left_of(chains, **hot, sampler_order=[5, 6, 0, 1, 3, 4, 2])
    # Cut before it is heated few are half of it, and many afterwards.
    assert last < first
    assert left_of(chains, **hot) == last
    assert left_of(chains, **hot, sampler_order=[0, 1, 3, 4, 2, 5]) == last
    # Mirostat takes the place of the filters.
    assert len(left_of(chains, prompt="a", top_k=1, mirostat=2, mirostat_tau=9)) > 1


def test_penalties_look_at_the_range(chains: tuple[Client, list[set[int]]]) -> None:
    """The likeliest id after "a" is in the prompt: whether it stays depends on the range."""
    likeliest = int(MODEL.logprobs(ids_of("a")[-1]).argmax())
    prompt = small_tokenizer().decode([likeliest]) + "_" * 20 + "a"
    greedy = {"prompt": prompt, "temperature": 0, "rep_pen": 100.0}
    assert left_of(chains, **greedy, rep_pen_range=10) == {likeliest}
    assert likeliest not in left_of(chains, **greedy, rep_pen_range=100)
    assert likeliest not in left_of(chains, **greedy)
    assert left_of(chains, **greedy, rep_pen_slope=0.0) == {likeliest}


@pytest.mark.parametrize(
    "body",
    [
        {"mirostat": 2, "mirostat_tau": 3.0, "mirostat_eta": 0.1},
        {"tfs": 0.9, "top_a": 0.2, "typical": 0.9, "min_p": 0.05},
        {"dynatemp_range": 0.5, "dynatemp_exponent": 1.5, "smoothing_factor": 0.25},
        {
            "dry_multiplier": 0.8,
            "dry_base": 1.75,
            "dry_allowed_length": 2,
            "dry_penalty_last_n": 50,
        },
        {"xtc_probability": 0.5, "xtc_threshold": 0.1},
        {"nsigma": 1.0, "presence_penalty": 0.5},
        {"logit_bias": {"97": -50, "98": 3.5}, "top_k": 50},
    ],
)
def test_every_sampler_works_and_the_same_seed_gives_the_same_text(
    tiny: Client, body: dict[str, Any]
) -> None:
    plain = result(tiny, max_length=40, sampler_seed=5, use_default_badwordsids=True)["text"]
    body = body | {"max_length": 40, "sampler_seed": 5, "use_default_badwordsids": True}
    text = result(tiny, **body)["text"]
    assert text == result(tiny, **body)["text"]
    assert text != plain
    if "logit_bias" in body:
        assert "a" not in text


def test_banned_texts_do_not_come(tiny: Client) -> None:
    text = result(tiny, max_length=60, sampler_seed=1)["text"]
    banned = [text[3:5], text[10]]
    found = result(tiny, max_length=60, sampler_seed=1, banned_tokens=banned)["text"]
    assert found
    for one in banned:
        assert one.lower() not in found.lower()


def test_a_temperature_alone_is_left_to_the_engine(tiny: Client) -> None:
    neutral = {
        "top_k": 0, "top_p": 1, "min_p": 0, "typical": 1, "tfs": 1, "top_a": 0, "rep_pen": 1,
        "rep_pen_range": 600, "rep_pen_slope": 0.5, "mirostat": 0, "mirostat_tau": 5,
        "dry_multiplier": 0, "dry_base": 1.75, "xtc_probability": 0, "xtc_threshold": 0.2,
        "dynatemp_range": 0, "smoothing_factor": 0, "banned_tokens": [], "logit_bias": {},
        "sampler_order": [6, 0, 1, 3, 4, 2, 5], "guidance_scale": 1, "negative_prompt": "",
        "use_story": False, "use_memory": False, "use_authors_note": False,
        "use_world_info": False, "render_special": False, "quiet": True, "grammar": "",
        "grammar_retain_state": False, "adaptive_target": -1, "adaptive_decay": 0.9,
        "replace_instruct_placeholders": False, "sampler_full_determinism": False,
    }  # fmt: skip
    request = request_of(tiny, temperature=0.6, sampler_seed=9, max_length=4, **neutral)
    assert request.combine is None
    assert (request.sampling.temperature, request.sampling.seed) == (0.6, 9)


REFUSALS = [
    ({"prompt": 5}, "prompt"),
    ({"max_length": 0}, "max_length"),
    ({"max_length": 2048}, "max_length"),
    ({"max_length": 50, "max_context_length": 50}, "max_length"),
    ({"max_context_length": 0}, "max_context_length"),
    ({"memory": "m" * 2040, "max_length": 20}, "memory"),
    ({"memory": "m" * 3000}, "memory"),
    ({"context_policy": "keep"}, "context_policy"),
    ({"context_policy": "shift"}, "context_policy"),
    ({"banned_strings": ["x" * 129]}, "banned_strings"),
    ({"banned_tokens": ["x"] * 257}, "banned_tokens"),
    ({"dry_sequence_breakers": ["x"] * 65}, "dry_sequence_breakers"),
    ({"n": 9}, "n"),
    ({"n": 0}, "n"),
    ({"mirostat": 1}, "mirostat"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 1.01}, "top_p"),
    ({"tfs": -0.1}, "tfs"),
    ({"rep_pen": 0}, "rep_pen"),
    ({"rep_pen_range": -2}, "rep_pen_range"),
    ({"sampler_order": [1, 2]}, "sampler_order"),
    ({"sampler_order": [6, 0, 1, 3, 4, 2, 2], "top_k": 1}, "sampler_order"),
    ({"sampler_seed": -2}, "sampler_seed"),
    ({"logit_bias": {"900": 1}}, "logit_bias"),
    ({"logit_bias": {"97": 1000}}, "logit_bias"),
    ({"stop_sequence": ["x" * 65]}, "stop_sequence"),
    ({"stop_sequence": ["x"] * 33}, "stop_sequence"),
    ({"grammar": "root ::= ("}, "grammar"),
    ({"genkey": "k" * 65}, "genkey"),
    ({"use_story": True}, "use_story"),
    ({"use_world_info": True}, "use_world_info"),
    ({"render_special": True}, "render_special"),
    ({"grammar_retain_state": True}, "grammar_retain_state"),
    ({"guidance_scale": 1.5}, "guidance_scale"),
    ({"negative_prompt": "no"}, "negative_prompt"),
    ({"adaptive_target": 0.5}, "adaptive_target"),
    ({"replace_instruct_placeholders": True}, "replace_instruct_placeholders"),
    ({"images": ["aGk="]}, "images"),
    ({"frmttriminc": True}, "frmttriminc"),
    ({"top_q": 1}, "top_q"),
    ({"model": "other"}, "model"),
]


@pytest.mark.parametrize(("body", "param"), REFUSALS)
@pytest.mark.parametrize("path", [GENERATE, STREAM])
def test_refusals_name_the_field(tiny: Client, path: str, body: dict[str, Any], param: str) -> None:
    error = tiny.refusal(path, **({"prompt": "a"} | body))
    assert error["status"] == (404 if param == "model" else 400)
    assert error["param"] == param
    assert param in error["message"].replace("memory and", "memory")


def test_refusals_have_the_detail_that_clients_show() -> None:
    engine = FakeEngine(lambda _: iter(()), limits=EngineLimits(queued_requests=1))
    engine.hold()
    try:
        with serve_routes(kobold_routes, engine=engine) as client, ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.send, GENERATE, {"prompt": "a"})
            while not engine.requests:
                threading.Event().wait(0.01)
            answer = client.send(GENERATE, {"prompt": "a"})
            assert answer.status == 429
            assert json.loads(answer.body)["detail"]["type"] == "service_unavailable"
            assert answer.headers["retry-after"] == "1"
            answer = client.send(GENERATE, {"prompt": "a", "max_length": 4000})
            assert "4000" in json.loads(answer.body)["detail"]["msg"]
            engine.answer = scripted([])
            engine.release()
            waiting.result(PATIENCE)
    finally:
        engine.close()


def wait_for_text(client: Client, text: str, **body: Any) -> None:
    pause = threading.Event()
    for _ in range(int(PATIENCE * 50)):
        found = client.post(CHECK, **body)["results"][0]["text"]
        if found == text:
            return
        assert text.startswith(found)
        pause.wait(0.02)
    raise AssertionError(f"{text!r} did not come")


@pytest.mark.parametrize("path", [GENERATE, STREAM])
def test_a_generation_is_looked_at_and_ended_by_its_key(
    stepped: tuple[Client, Stepper], path: str
) -> None:
    client, stepper = stepped
    with ThreadPoolExecutor(1) as pool:
        sent = pool.submit(client.send, path, {"prompt": "x", "genkey": "KCPP1234"})
        assert stepper.began.acquire(timeout=PATIENCE)
        wait_for_text(client, "", genkey="KCPP1234")
        stepper.permits.release(3)
        wait_for_text(client, "abc", genkey="KCPP1234")
        assert client.get(CHECK)["results"] == [{"text": "abc"}]
        assert client.post(CHECK, genkey="KCPP9999")["results"] == [{"text": ""}]
        assert client.post(ABORT, genkey="KCPP9999") == {"success": False}
        assert client.post(ABORT, genkey="KCPP1234") == {"success": True}
        answer = sent.result(PATIENCE)
    assert answer.status == 200
    if path == GENERATE:
        [found] = json.loads(answer.body)["results"]
        assert (found["text"], found["finish_reason"]) == ("abc", "stop")
    else:
        assert "".join(data["token"] for _, data in events(answer.body)) == "abc"
        assert events(answer.body)[-1][1]["finish_reason"] == "stop"
    assert len(client.engine.cancelled) == 1
    # Afterwards the text can still be recovered, and there is nothing left to end.
    assert client.post(CHECK, genkey="KCPP1234")["results"] == [{"text": "abc"}]
    assert client.post(ABORT, genkey="KCPP1234") == {"success": False}


def test_without_a_key_only_what_is_clear_is_ended(stepped: tuple[Client, Stepper]) -> None:
    client, stepper = stepped
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(client.send, GENERATE, {"prompt": "x"})
        assert stepper.began.acquire(timeout=PATIENCE)
        second = pool.submit(client.send, GENERATE, {"prompt": "y", "genkey": "K"})
        while len(client.engine.requests) < 2:
            threading.Event().wait(0.01)
        # SillyTavern sends neither a body nor its type.
        empty = client.raw.request("POST", ABORT, body=b"")
        assert json.loads(empty.body) == {"success": False}
        assert client.post(ABORT, genkey="K") == {"success": True}
        assert second.result(PATIENCE).status == 200
        empty = client.raw.request("POST", ABORT, body=b"")
        assert json.loads(empty.body) == {"success": True}
        assert first.result(PATIENCE).status == 200
    assert client.get(CHECK)["results"] == [{"text": ""}]


def test_nobody_sees_or_ends_what_another_key_writes() -> None:
    stepper = Stepper()
    access = make_access("127.0.0.1", keys=["key-a", "key-b"])
    with (
        serve_routes(kobold_routes, stepper, access=access) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        mine, other = (
            Client(
                raw=client.raw.with_defaults(Authorization=f"Bearer {key}"), engine=client.engine
            )
            for key in ("key-a", "key-b")
        )
        sent = pool.submit(mine.send, GENERATE, {"prompt": "x", "genkey": "K", "max_length": 5})
        assert stepper.began.acquire(timeout=PATIENCE)
        stepper.permits.release(2)
        wait_for_text(mine, "ab", genkey="K")
        for body in ({"genkey": "K"}, {}):
            assert other.post(CHECK, **body)["results"] == [{"text": ""}]
            assert other.post(ABORT, **body) == {"success": False}
            assert other.post("/api/extra/last_logprobs", **body) == {"logprobs": None}
        assert other.get("/api/extra/perf")["last_token_count"] == 0
        assert other.get("/api/extra/version")["protected"] is True
        stepper.permits.release(10)
        assert json.loads(sent.result(PATIENCE).body)["results"][0]["text"] == "abcde"
        assert mine.get("/api/extra/perf")["last_token_count"] == 5


def test_a_client_that_leaves_ends_its_generation(stepped: tuple[Client, Stepper]) -> None:
    client, stepper = stepped
    for path in (GENERATE, STREAM):
        body = b'{"prompt": "x", "genkey": "K"}'
        headers = [("Content-Type", "application/json")]
        with client.raw.connect() as connection:
            connection.sendall(client.raw.encode("POST", path, headers=headers, body=body))
            assert stepper.began.acquire(timeout=PATIENCE)
            wanted = len(client.engine.cancelled) + 1
        pause = threading.Event()
        for _ in range(int(PATIENCE * 50)):
            if len(client.engine.cancelled) == wanted:
                break
            pause.wait(0.02)
        assert len(client.engine.cancelled) == wanted
        stepper.permits.release(1)  # The thread of the engine looks again.
        assert client.post(ABORT, genkey="K") == {"success": False}


def test_only_the_last_texts_are_kept(speaker: Client) -> None:
    for number in range(MOST_KEPT + 5):
        result(speaker, genkey=f"many{number}", max_length=1)
    kept = [
        speaker.post(CHECK, genkey=f"many{number}")["results"][0]["text"] != ""
        for number in range(MOST_KEPT + 5)
    ]
    assert kept == [False] * 5 + [True] * MOST_KEPT


def test_perf_has_the_times_of_the_last_text(speaker: Client) -> None:
    before = speaker.get("/api/extra/perf")["total_gens"]
    result(speaker, sampler_seed=77, max_length=3)
    found = speaker.get("/api/extra/perf")
    assert found["total_gens"] == before + 1
    assert found["last_seed"] == 77
    assert found["last_token_count"] == 3
    assert found["stop_reason"] == 0
    assert found["last_process"] >= 0
    assert found["last_eval"] >= 0
    assert (found["queue"], found["idle"]) == (0, 1)
