"""What lm-evaluation-harness asks, replayed, and its scores against those of the model here.

`lm_eval/requests.json` was written down while the real one ran; `make check-clients` runs it.
"""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import bluejay
from bluejay.runs.language_model import LanguageModel
from serving.text_server import TextServer, serve_bundled

RECORDED = json.loads((Path(__file__).parent / "lm_eval" / "requests.json").read_text())
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def server() -> Iterator[TextServer]:
    with serve_bundled() as found:
        yield found


@cache
def here() -> LanguageModel:
    return bluejay.load("bluejay-tiny")


def replay(server: TextServer, request: dict[str, Any]) -> Any:
    body = request["body"]
    if body is None:
        answer = server.raw.request(request["method"], request["path"])
    else:
        named = {"model": server.service.model} if "model" in body else {}
        answer = server.post(request["path"], **(body | named))
    assert answer.status == 200, answer.body
    return json.loads(answer.body)


def of_path(path: str) -> list[dict[str, Any]]:
    found = [request for request in RECORDED["requests"] if request["path"] == path]
    assert found
    return found


def test_it_finds_a_tokenizer_and_needs_none_of_its_own(server: TextServer) -> None:
    assert RECORDED["client"] == "lm-evaluation-harness"
    [asked] = of_path("/tokenizer_info")
    info = replay(server, asked)
    assert info["eos_token"] == info["bos_token"] == "<|endoftext|>"
    for request in of_path("/tokenize"):
        text, found = request["body"]["prompt"], replay(server, request)["tokens"]
        expected = here().tokenizer.encode(text)
        assert found == ([here().tokenizer.document_start_id] if "<|" in text else expected)


def test_scores_are_those_of_the_model_here(server: TextServer) -> None:
    """Each text is split as it splits it: the last number is of the token that was made."""
    num_compared = 0
    for request in of_path("/v1/completions"):
        prompts = request["body"]["prompt"]
        choices = sorted(replay(server, request)["choices"], key=lambda choice: choice["index"])
        for ids, choice in zip(prompts, choices, strict=True):
            numbers = choice["logprobs"]["token_logprobs"]
            tops = choice["logprobs"]["top_logprobs"]
            assert len(numbers) == len(tops) == len(ids) + 1
            for cut in (1, len(ids) - 1):
                expected, is_greedy = here().score_ids(ids[:cut], ids[cut:])
                assert sum(numbers[cut:-1]) == pytest.approx(expected, abs=TOLERANCE)
                pairs = zip(numbers[cut:-1], tops[cut:-1], strict=True)
                assert all(number == max(top.values()) for number, top in pairs) == is_greedy
                num_compared += 1
    assert num_compared >= 12


def test_what_it_found_is_what_the_model_here_finds() -> None:
    model = here()
    for found in RECORDED["scores"]:
        score, is_greedy = model.score(found["context"], found["continuation"])
        assert score == pytest.approx(found["logprob"], abs=TOLERANCE)
        assert is_greedy == found["is_greedy"]
    for found in RECORDED["rolling"]:
        score, _ = model.score("", found["text"])
        assert score == pytest.approx(found["logprob"], abs=TOLERANCE)
