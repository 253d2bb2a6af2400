"""The samplers of writers of fiction, as OpenAI's own client sends them, on any engine."""

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from bluejay.serving.writer_fields import DEFAULT_ORDER
from serving.fake_engine import TinyModel
from serving.live_server import quick_limits
from serving.route_server import serve_routes
from serving.text_server import (
    NUM_ROWS,
    TextServer,
    serve_answers,
    small_tokenizer,
    text_routes,
)

PROMPT = "the sea and the sky and the sea"
SAID = [{"role": "user", "content": PROMPT}]
SAMPLERS: list[dict[str, Any]] = [
    {"dry_multiplier": 5.0, "dry_base": 2.0, "dry_allowed_length": 1, "dry_range": 40},
    {"dry_multiplier": 5.0, "dry_allowed_length": 1, "dry_sequence_breakers": '["\\n", ":"]'},
    {"xtc_probability": 1.0, "xtc_threshold": 0.02},
    {"mirostat": 2, "mirostat_tau": 1.0, "mirostat_eta": 0.5},
    {"mirostat_mode": 2, "mirostat_tau": 1.0},
    {"tfs": 0.3},
    {"tfs_z": 0.3},
    {"top_a": 0.8},
    {"dynatemp_range": 0.9, "temperature": 1.0, "dynatemp_exponent": 3.0},
    {"dynamic_temperature": True, "dynatemp_low": 0.1, "dynatemp_high": 0.4},
    {"top_n_sigma": 0.3},
    {"smoothing_factor": 2.0},
    {"banned_strings": ["a", "e", " "]},
    {"repetition_penalty": 1.9, "repetition_penalty_range": 8},
    {"repeat_penalty": 1.9, "repeat_last_n": 8},
    {"temperature": 1.6, "temperature_last": True, "top_p": 0.4, "frequency_penalty": 0.5},
    {"samplers": ["top_k", "temperature"], "top_k": 5, "temperature": 1.5},
]


def complete(served: TextServer, given: dict[str, Any], **own: Any) -> Any:
    defaults: dict[str, Any] = {"model": "small", "prompt": PROMPT, "max_tokens": 24, "seed": 3}
    return served.client.completions.create(**(defaults | own), extra_body=given)


def text(served: TextServer, given: dict[str, Any], **own: Any) -> str:
    [choice] = complete(served, given, **own).choices
    return str(choice.text)


def ids_of(served: TextServer, told: str) -> list[int]:
    service = served.service
    return [*service.conventions.document_start, *service.tokenizer.encode(told)]


@pytest.mark.parametrize("given", SAMPLERS, ids=lambda given: str(given)[:60])
def test_every_sampler_works_on_both_routes(served: TextServer, given: dict[str, Any]) -> None:
    # Over several seeds: a sampler that leaves the likeliest ids may leave one text as it was.
    plain = [text(served, {}, seed=seed) for seed in range(3)]
    changed = [text(served, given, seed=seed) for seed in range(3)]
    assert changed != plain
    assert changed == [text(served, given, seed=seed) for seed in range(3)]

    def said(body: dict[str, Any], seed: int) -> str:
        answer = served.client.chat.completions.create(
            model="small", messages=SAID, max_tokens=24, seed=seed, extra_body=body
        )
        return answer.choices[0].message.content

    assert [said(given, seed) for seed in range(3)] != [said({}, seed) for seed in range(3)]


def test_the_same_seed_gives_the_same_text_alone_loaded_streamed_and_in_any_number(
    served: TextServer,
) -> None:
    mixed = {"dry_multiplier": 2.0, "xtc_probability": 0.5, "xtc_threshold": 0.05, "min_p": 0.01}
    alone = [choice.text for choice in complete(served, mixed, n=3).choices]
    assert alone[0] == text(served, mixed)
    assert len({*alone}) == 3
    with ThreadPoolExecutor(6) as pool:
        others = [pool.submit(text, served, {"tfs": 0.5}, seed=seed) for seed in range(4)]
        plain = [pool.submit(text, served, {}, seed=seed) for seed in range(4)]
        loaded = [pool.submit(complete, served, mixed, n=3) for _ in range(2)]
        for found in loaded:
            assert [choice.text for choice in found.result().choices] == alone
        for found in (*others, *plain):
            assert found.result()
    streamed = ["", "", ""]
    for event in complete(served, mixed, n=3, stream=True):
        for choice in event.choices:
            streamed[choice.index] += choice.text
    assert streamed == alone


def test_each_prompt_of_a_list_has_chains_of_its_own(served: TextServer) -> None:
    given = {"dry_multiplier": 5.0, "dry_allowed_length": 1, "repetition_penalty": 1.3}
    prompts = ["the the the", PROMPT]
    both = [choice.text for choice in complete(served, given, prompt=prompts).choices]
    assert both == [text(served, given, prompt=prompt) for prompt in prompts]


def test_probabilities_are_the_models_own(served: TextServer) -> None:
    assert served.reference is not None
    given = {"top_a": 0.2, "tfs": 0.9, "dry_multiplier": 3.0, "dry_allowed_length": 1}
    answer = complete(served, given, logprobs=3, echo=True)
    [choice] = answer.choices
    found = choice.logprobs
    ids, count = ids_of(served, PROMPT), len(served.service.conventions.document_start)
    new = [
        served.service.tokenizer.encode(token)
        for token in found.tokens[len(ids) - count :]
        if not token.startswith("bytes:")
    ]
    assert found.token_logprobs[0] is None
    for tokens, logprob, top in zip(
        new,
        found.token_logprobs[len(ids) - count :],
        found.top_logprobs[len(ids) - count :],
        strict=False,
    ):
        if len(tokens) != 1:
            break
        row = np.asarray(served.reference(ids))
        assert logprob == pytest.approx(float(row[tokens[0]]), abs=1e-4)
        assert max(top.values()) == pytest.approx(float(row.max()), abs=1e-4)
        ids += tokens
    assert len(ids) > len(ids_of(served, PROMPT))


def test_best_of_ranks_by_the_models_own_probabilities(served: TextServer) -> None:
    given = {"top_a": 0.1, "banned_strings": ["zz"]}
    all_of_them = complete(served, given, n=4, logprobs=0).choices
    means = [float(np.mean(choice.logprobs.token_logprobs)) for choice in all_of_them]
    best = text(served, given, n=1, best_of=4)
    assert best == all_of_them[int(np.argmax(means))].text


def test_samplers_go_with_formats_biases_and_stops(served: TextServer) -> None:
    given = {"dry_multiplier": 5.0, "dry_allowed_length": 1, "xtc_probability": 0.5}
    schema = {"type": "object", "properties": {"a": {"enum": ["sea", "sky"]}}, "required": ["a"]}
    schema["additionalProperties"] = False
    wrapped = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    for seed in range(3):
        told = text(served, given | {"response_format": wrapped}, max_tokens=60, seed=seed)
        assert json.loads(told)["a"] in ("sea", "sky")
        told = text(served, given | {"grammar": 'root ::= "the " ("sea" | "sky")'}, seed=seed)
        assert told in ("the sea", "the sky")
    [token] = served.service.tokenizer.encode("e")
    assert text(served, given, logit_bias={str(token): 100}).count("e") > 3
    whole = text(served, given)
    stop = whole[5:7]
    assert text(served, given, stop=stop) == whole[: whole.index(stop)]


REFUSALS: list[tuple[dict[str, Any], str, str]] = [
    ({"dry_multiplier": -1}, "from 0 to 100", "dry_multiplier"),
    ({"dry_base": 101}, "from 0 to 100", "dry_base"),
    ({"dry_allowed_length": -1}, "from 0 to", "dry_allowed_length"),
    ({"dry_penalty_last_n": -2}, "from -1 to", "dry_penalty_last_n"),
    ({"dry_multiplier": 1, "dry_penalty_last_n": 0}, "no token to look at", "dry_penalty_last_n"),
    ({"dry_range": 4, "dry_penalty_last_n": 4}, "send one", "dry_range"),
    ({"dry_range": -1}, "from 0 to", "dry_range"),
    ({"dry_sequence_breakers": "[1]"}, "must be a list of texts", "dry_sequence_breakers"),
    ({"dry_sequence_breakers": "[" * 9000}, "must be a list of texts", "dry_sequence_breakers"),
    ({"dry_sequence_breakers": ["a"] * 65}, "may have 64", "dry_sequence_breakers"),
    ({"dry_sequence_breakers": ["a" * 129]}, "may have 128", "dry_sequence_breakers"),
    ({"banned_strings": ["a"] * 257}, "may have 256", "banned_strings"),
    ({"xtc_probability": 1.01}, "from 0 to 1", "xtc_probability"),
    ({"xtc_threshold": -0.1}, "from 0 to 1", "xtc_threshold"),
    ({"xtc_probability": 1, "temperature": 0}, "raise the temperature", "xtc_probability"),
    ({"mirostat": 1}, "send 2", "mirostat"),
    ({"mirostat": 3}, "not supported", "mirostat"),
    ({"mirostat_mode": 1}, "send 2", "mirostat_mode"),
    ({"mirostat_mode": 3}, "from 0 to 2", "mirostat_mode"),
    ({"mirostat_mode": 2, "mirostat": 0}, "mean the same", "mirostat_mode"),
    ({"mirostat": 2, "mirostat_tau": 101}, "from 0 to 100", "mirostat_tau"),
    ({"mirostat": 2, "mirostat_eta": 11}, "from 0 to 10", "mirostat_eta"),
    ({"mirostat": 2, "top_p": 0.9}, "leave top_p out", "top_p"),
    ({"mirostat": 2, "xtc_probability": 0.5}, "leave xtc_probability out", "xtc_probability"),
    ({"mirostat": 2, "temperature": 0}, "raise the temperature", "mirostat"),
    ({"mirostat": 2, "samplers": ["top_k"]}, "send one", "samplers"),
    ({"tfs": 1.1}, "from 0 to 1", "tfs"),
    ({"tfs_z": -0.1}, "from 0 to 1", "tfs_z"),
    ({"tfs_z": 0.5, "tfs": 0.6}, "mean the same", "tfs_z"),
    ({"top_a": -1}, "from 0 to 100", "top_a"),
    ({"top_n_sigma": -2}, "from -1 to 100", "top_n_sigma"),
    ({"dynatemp_range": 101}, "from -100 to 100", "dynatemp_range"),
    ({"dynatemp_exponent": -1}, "from 0 to 100", "dynatemp_exponent"),
    ({"dynatemp_low": 0.5}, "send both", "dynatemp_high"),
    ({"dynatemp_high": 0.5}, "send both", "dynatemp_low"),
    ({"dynatemp_low": 0.9, "dynatemp_high": 0.5}, "must be smaller", "dynatemp_low"),
    (
        {"dynatemp_low": 0.5, "dynatemp_high": 0.9, "dynatemp_range": 0.1},
        "send one of the two",
        "dynatemp_range",
    ),
    ({"dynamic_temperature": True}, "how far", "dynamic_temperature"),
    ({"repetition_penalty_range": -1}, "from 0 to", "repetition_penalty_range"),
    ({"repeat_penalty": 1.1, "repetition_penalty": 1.2}, "mean the same", "repeat_penalty"),
    ({"repeat_penalty": 0}, "from 1e-06 to", "repeat_penalty"),
    ({"repeat_last_n": 5, "repetition_penalty_range": 5}, "send one", "repeat_last_n"),
    ({"repeat_last_n": 0, "repeat_penalty": 1.1}, "no token to look at", "repeat_last_n"),
    ({"sampler_priority": []}, "set samplers instead", "sampler_priority"),
    ({"samplers": ["top_q"]}, "but there are", "samplers"),
    ({"samplers": ["top_k", "top_k"]}, "twice", "samplers"),
    ({"samplers": ["top_k"], "tfs": 0.5}, "leaves out 'tfs'", "samplers"),
    ({"samplers": [], "temperature": 0.5}, "leaves out 'temperature'", "samplers"),
    ({"samplers": ["temperature"], "temperature_last": True}, "send one", "samplers"),
]


@pytest.mark.parametrize(("body", "part", "param"), REFUSALS, ids=lambda value: str(value)[:50])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_what_is_wrong_is_refused_by_name(
    served: TextServer, path: str, body: dict[str, Any], part: str, param: str
) -> None:
    prompt: dict[str, Any] = {"prompt": "a"} if "chat" not in path else {"messages": SAID}
    error = served.refusal(path, **prompt, **body)
    assert (error["status"], error["param"]) == (400, param), error
    assert part in error["message"]


@pytest.mark.parametrize("name", ["dry_multiplier", "tfs_z", "samplers", "top_k", "logit_bias"])
def test_the_newer_interface_refuses_them_by_name(served: TextServer, name: str) -> None:
    error = served.refusal("/v1/responses", input="a", **{name: 1})
    assert (error["status"], error["param"], error["code"]) == (400, name, "unsupported_field")
    assert "/v1/chat/completions" in error["message"]


NEUTRAL: dict[str, Any] = {
    "dry_multiplier": 0, "dry_base": 1.75, "dry_allowed_length": 2, "dry_penalty_last_n": 0,
    "dry_sequence_breakers": '["\\n",":"]', "xtc_probability": 0, "xtc_threshold": 0.1,
    "mirostat": 0, "mirostat_mode": 0, "mirostat_tau": 5, "mirostat_eta": 0.1, "tfs": 1,
    "tfs_z": 1, "top_a": 0, "dynamic_temperature": False, "dynatemp_low": 1, "dynatemp_high": 1,
    "dynatemp_range": 0, "dynatemp_exponent": 1, "smoothing_factor": 0, "smoothing_curve": 1,
    "top_n_sigma": 0, "banned_strings": [], "temperature_last": True, "typical_p": 1,
    "repetition_penalty": 1, "repeat_penalty": 1, "repetition_penalty_range": 1024,
}  # fmt: skip


def test_neutral_values_leave_the_sampling_to_the_engine() -> None:
    model = TinyModel(small_tokenizer(), NUM_ROWS)
    with serve_answers(model.answer) as (server, engine):
        own = {"temperature": 0.6, "seed": 9, "top_k": 40, "min_p": 0.1, "frequency_penalty": 0.5}
        own["repetition_penalty"] = 1.2
        neutral = NEUTRAL | {"repetition_penalty_range": 0, "temperature_last": False} | own
        neutral["repeat_penalty"] = 1.2
        plain = server.post("/v1/completions", prompt="a", **own)
        given = server.post("/v1/completions", prompt="a", **neutral)
        before, after = engine.requests
        assert after.combine is None
        assert after.constraint is None
        assert after.sampling == before.sampling
        assert plain.status == given.status == 200
        assert server.post("/v1/completions", prompt="a", temperature=1, **NEUTRAL).status == 200
        assert engine.requests[-1].combine is None
        assert server.post("/v1/completions", prompt="a", tfs=0.5, **own).status == 200
        assert engine.requests[-1].combine is not None


def test_a_sample_that_is_not_read_any_more_is_cancelled() -> None:
    model = TinyModel(small_tokenizer(), NUM_ROWS)
    with serve_answers(model.answer) as (server, engine):
        told = text(server, {"tfs": 0.9}, max_tokens=200, stop=["a", "e", "i", "o"])
        assert len(told) < 200
        assert engine.cancelled == engine.requests


def test_the_description_has_the_fields_with_their_ranges() -> None:
    model = TinyModel(small_tokenizer(), NUM_ROWS)
    with serve_routes(text_routes, model.answer, limits=quick_limits()) as client:
        schemas = client.get("/openapi.json")["components"]["schemas"]
    for kind in ("CompletionBody", "ChatBody"):
        fields = schemas[kind]["properties"]

        def number(name: str, fields: dict[str, Any] = fields) -> dict[str, Any]:
            [found] = [one for one in fields[name]["anyOf"] if one.get("type") != "null"]
            return dict(found)

        assert (number("xtc_threshold")["minimum"], number("xtc_threshold")["maximum"]) == (0, 1)
        assert number("mirostat")["enum"] == [0, 2]
        assert number("dry_penalty_last_n")["minimum"] == -1
        assert ", ".join(DEFAULT_ORDER) in number("samplers")["description"]
        for name in NEUTRAL:
            assert name in fields
