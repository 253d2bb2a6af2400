"""Bodies that `/v1/completions` refuses: fast, by name, without a word of the prompt in the log."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from serving.live_server import captured_log
from serving.text_server import TextServer

SECRET = "xylophone"
BORDERS = (-(2**63), -1, 0, 2**31, 2**53, 2**63 - 1, 2**63, 10**30)
"""What every whole number is tried at; each case leaves out what is allowed."""


@pytest.fixture(autouse=True)
def good_requests_are_served_afterwards(served: TextServer) -> Iterator[None]:
    with captured_log() as log:
        yield
        answer = served.post("/v1/completions", prompt="next", max_tokens=1)
        assert answer.status == 200
    assert SECRET not in log.getvalue()
    assert "Traceback" not in log.getvalue()


def refused(served: TextServer, body: dict[str, Any], *, part: str, param: str | None) -> None:
    """The body is refused with 400, at once, and the sentence has `part`."""
    started = time.monotonic()
    error = served.refusal("/v1/completions", **body)
    seconds = time.monotonic() - started
    assert error["status"] == 400, error
    assert error["type"] == "invalid_request_error"
    assert part in error["message"], error
    assert error["param"] == param
    assert SECRET not in error["message"]
    # A quarter of a second where nobody else computes.
    assert seconds < 10


def cases() -> Iterator[tuple[dict[str, Any], str, str | None]]:
    allowed: dict[str, set[int]] = {
        "max_tokens": set(),
        "n": set(),
        "best_of": set(),
        "logprobs": {0},
        "top_k": {0},
        "seed": {0, 2**31, 2**53, 2**63 - 1},
        "timeout_ms": set(),
    }
    for name, good in allowed.items():
        # 2**31 - 1 is the largest top_k.
        for value in BORDERS:
            if value not in good:
                yield {name: value}, "", _blamed(name, value)
        for value in (True, "5", 1.5, [], {}):
            yield {name: value}, f"'{name}' is wrong", name


def _blamed(name: str, value: int) -> str | None:
    """The field that a refusal names: none for a number that no field could have."""
    if not -(2**63) <= value < 2**63:
        return None
    # Too many tokens for the context: that is about the prompt as well.
    return "prompt" if name == "max_tokens" and value > 0 else name


NUMBERS = {
    "temperature": (-1, -1e-30, 1e-30, 2.01, 1e38),
    "top_p": (-1, 0, 1.01, 1e38),
    "min_p": (-0.1, 1, 2),
    "typical_p": (-1, 0, 1.01),
    "repetition_penalty": (-1, 0, 1e38),
    "presence_penalty": (-2.01, 2.01),
    "frequency_penalty": (-2.01, 2.01),
}
"""Values just outside of what is allowed."""


@pytest.mark.parametrize(("body", "part", "param"), list(cases()), ids=str)
def test_whole_numbers_at_their_borders(
    served: TextServer, body: dict[str, Any], part: str, param: str
) -> None:
    refused(served, {"prompt": SECRET} | body, part=part, param=param)


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name in NUMBERS for value in NUMBERS[name]]
)
def test_numbers_out_of_range(served: TextServer, name: str, value: float) -> None:
    refused(served, {"prompt": SECRET, name: value}, part=f"{name} is {value}", param=name)


def ids_that_mean_nothing(served: TextServer) -> list[int]:
    rows = served.service.config.vocab_size
    padding = [i for i in range(rows) if not served.service.allowed[i]]
    return [*padding[:1], *padding[-1:], rows, 2**31, 2**63 - 1, -1, -(2**63)]


WRONG: list[tuple[dict[str, Any], str, str | None]] = [
    ({"prompt": ""}, "prompt is empty", "prompt"),
    ({"prompt": []}, "prompt is an empty list", "prompt"),
    ({"prompt": [""]}, "prompt is empty", "prompt"),
    ({"prompt": ["a", ""]}, "prompt is empty", "prompt"),
    ({"prompt": [[]]}, "prompt has no tokens", "prompt"),
    ({"prompt": [[1], []]}, "prompt has no tokens", "prompt"),
    ({"prompt": [1, SECRET]}, "prompt mixes", "prompt"),
    ({"prompt": [[1], SECRET]}, "prompt mixes", "prompt"),
    ({"prompt": [1, [1]]}, "prompt mixes", "prompt"),
    ({"prompt": [1.0]}, "wrong", "prompt[0]"),
    ({"prompt": [True]}, "wrong", "prompt[0]"),
    ({"prompt": [[True]]}, "wrong", "prompt[0][0]"),
    ({"prompt": [None]}, "wrong", "prompt[0]"),
    ({"prompt": [["a"]]}, "wrong", "prompt[0][0]"),
    ({"prompt": {"text": SECRET}}, "wrong", "prompt"),
    ({"prompt": 5}, "wrong", "prompt"),
    ({"prompt": ["a"] * 65}, "--max-prompts", "prompt"),
    ({"prompt": [[1]] * 65}, "--max-prompts", "prompt"),
    ({"prompt": "a" * 32769}, "--max-prompt-characters", "prompt"),
    ({"prompt": ["a"] * 9, "n": 8}, "--max-sequences", None),
    ({"stop": ""}, "stop string is empty", "stop"),
    ({"stop": ["a", ""]}, "stop string is empty", "stop"),
    ({"stop": list("abcde")}, "--max-stop-strings", "stop"),
    ({"stop": "a" * 65}, "--max-stop-characters", "stop"),
    ({"stop": [1]}, "wrong", "stop[0]"),
    ({"stop": 5}, "wrong", "stop"),
    ({"logit_bias": {"abc": 1}}, "'abc'", "logit_bias"),
    ({"logit_bias": {"-1": 1}}, "'-1'", "logit_bias"),
    ({"logit_bias": {"1.0": 1}}, "'1.0'", "logit_bias"),
    ({"logit_bias": {" 1": 1}}, "' 1'", "logit_bias"),
    ({"logit_bias": {"²": 1}}, "'²'", "logit_bias"),
    ({"logit_bias": {"9" * 400: 1}}, "logit_bias names", "logit_bias"),
    ({"logit_bias": {"1": 1e38}}, "-100 to 100", "logit_bias"),
    ({"logit_bias": {"1": -1e38}}, "-100 to 100", "logit_bias"),
    ({"logit_bias": {"1": "2"}}, "wrong", "logit_bias[...]"),
    ({"logit_bias": {str(i): 0 for i in range(1025)}}, "--max-logit-bias", "logit_bias"),
    ({"logit_bias": [1]}, "wrong", "logit_bias"),
    ({"n": 9}, "--max-samples", "n"),
    ({"best_of": 9}, "--max-samples", "best_of"),
    ({"best_of": 2, "n": 3}, "raise best_of", "best_of"),
    ({"best_of": 2, "stream": True}, "cannot be streamed", "best_of"),
    ({"best_of": 2, "logprobs": 1}, "ask for n=2", "logprobs"),
    ({"logprobs": 21}, "--max-logprobs", "logprobs"),
    ({"echo": True, "suffix": SECRET}, "echo and suffix", "echo"),
    ({"suffix": SECRET}, "suffix is not supported", "suffix"),
    ({"echo": "yes"}, "wrong", "echo"),
    ({"max_tokens": 0}, "max_tokens is 0", "max_tokens"),
    ({"stream_options": {"include_usage": True}}, "only of use with stream", "stream_options"),
    ({"stream": True, "stream_options": {"usage": True}}, "usage", "stream_options.usage"),
    ({"stream": 1}, "wrong", "stream"),
    ({"response_format": {"type": "xml"}}, "wrong", "response_format.type"),
    ({"response_format": {}}, "missing", "response_format.type"),
    (
        {"response_format": {"type": "json_schema"}},
        "missing",
        "response_format.json_schema",
    ),
    ({"grammar": "root ::= ("}, "grammar", "grammar"),
    ({"grammar": ""}, "grammar", "grammar"),
    (
        {"grammar": 'root ::= "a"', "response_format": {"type": "json_object"}},
        "send one",
        "grammar",
    ),
    ({"timeout_ms": 300_001}, "--request-timeout", "timeout_ms"),
    ({"context_policy": "shift"}, "wrong", "context_policy"),
    ({"context_policy": "keep"}, "send both", "context_keep"),
    ({"context_keep": 5}, "send both", "context_keep"),
    ({"context_policy": "keep", "context_keep": -1}, "context_keep is -1", "context_keep"),
    ({"context_policy": "keep", "context_keep": "other"}, "no text", "context_keep"),
    ({"max_token": 5}, "did you mean 'max_tokens'", "max_token"),
    ({"min_tokens": 3}, "'min_tokens' is not supported", "min_tokens"),
    ({"ignore_eos": 1}, "wrong", "ignore_eos"),
    ({"user": 5}, "wrong", "user"),
    ({"model": 5}, "wrong", "model"),
]


@pytest.mark.parametrize(("body", "part", "param"), WRONG, ids=lambda value: str(value)[:60])
def test_fields_that_are_wrong(
    served: TextServer, body: dict[str, Any], part: str, param: str | None
) -> None:
    refused(served, {"prompt": SECRET} | body, part=part, param=param)


def test_ids_that_mean_nothing(served: TextServer) -> None:
    for token in ids_that_mean_nothing(served):
        for prompt in ([token], [1, token], [[1], [token]]):
            refused(served, {"prompt": prompt}, part=f"the id {token}", param="prompt")
        bias = {"logit_bias": {str(token): 1}}
        refused(served, {"prompt": SECRET} | bias, part=f"'{token}'", param="logit_bias")


def test_a_prompt_that_does_not_fit_names_all_numbers(served: TextServer) -> None:
    context = served.service.context_length
    [token] = served.service.tokenizer.encode("a")
    for body, part in (
        ({"prompt": [token] * (context + 1), "max_tokens": 1}, f"{context + 1} tokens"),
        ({"prompt": [token] * context, "max_tokens": 1}, f"context of {context}"),
        ({"prompt": [token] * 10, "max_tokens": context - 9}, f"{context - 9} new"),
        ({"prompt": [token], "max_tokens": 2**63 - 1}, f"{2**63 - 1} new tokens"),
        ({"prompt": [token] * (context + 1), "max_tokens": 0, "echo": True}, "0 new ones"),
    ):
        refused(served, body, part=part, param="prompt")
    for body in (
        {"prompt": [token] * (context - 1), "max_tokens": 1},
        {"prompt": [token] * context, "max_tokens": 0, "echo": True},
    ):
        assert served.post("/v1/completions", **body).status == 200


TEXTS = {
    "letters": "a" * 32_768,
    "spaces": " " * 32_768,
    "carets": "^" * 32_768,
    "combining marks": "\u0301" * 32_768,
    "zero-width joiners": "\u200d" * 32_768,
    "mixed": "👩‍👩‍👧‍👦" * 4_681,
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_texts_that_are_hard_to_tokenize_are_refused_for_their_length_only(
    served: TextServer, text: str
) -> None:
    error = served.refusal("/v1/completions", prompt=text)
    assert error["status"] == 400
    assert error["code"] == "context_length_exceeded"
    assert len(error["message"]) < 400


def test_what_a_refusal_says_is_short(served: TextServer) -> None:
    long = "b" * 30_000
    for body in (
        {"model": long},
        {"adapter": long},
        {long: 1},
        {"logit_bias": {long: 1}},
        {"context_policy": long},
        {"seed": 10**4000},
        {"n": 10**4000},
    ):
        answer = served.post("/v1/completions", prompt="a", **body)
        assert answer.status in (400, 404)
        assert len(answer.body) < 1000
        json.loads(answer.body)
