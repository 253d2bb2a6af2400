"""`bluejay serve` as a process: what clients get equals the model in this process, and its ends."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from openai import APIConnectionError, AuthenticationError, NotFoundError

import bluejay
from bluejay.model.decoder import final_norm, residual
from bluejay.model.params import DecoderParams
from bluejay.runs.language_model import LanguageModel
from served_process import PATIENCE, Served, running, start
from text_models import write_text_model

SEA = "The sea was calm that day, and"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The bundled model; the first answers of /ready are asked for at once."""
    folder = tmp_path_factory.mktemp("tiny")
    with running(start(folder, "bluejay-tiny", "--port", "0", "--slots", "4")) as served:
        status, refusal = served.request("GET", "/ready")
        assert status == 503
        assert refusal["error"]["code"] == "warming_up"
        assert served.request("POST", "/v1/completions", {"prompt": "a"})[0] == 503
        assert served.request("GET", "/live")[0] == 200
        served.wait_until_ready()
        assert served.request("GET", "/ready") == (200, {"status": "ready"})
        yield served


@pytest.fixture(scope="module")
def here() -> LanguageModel:
    return bluejay.load("bluejay-tiny")


def test_it_says_what_it_is_and_where(tiny: Served) -> None:
    # Keys and values of 6 layers, 224 numbers of 4 bytes for each of 256 tokens in 4 slots.
    size = f"{2 * 6 * 224 * 4 * 256 * 4 / 1e6:.0f} MB"
    assert tiny.said[:2] == [
        f"bluejay-tiny (5.46 M parameters) at {tiny.url}",
        f"  4 slots of 256 tokens: {size} of keys and values",
    ]
    status, page = tiny.request("GET", "/")
    assert status == 200
    assert f"--url {tiny.url}" in page
    assert "POST /v1/completions" in page


def test_greedy_text_is_that_of_the_model_here(tiny: Served, here: LanguageModel) -> None:
    expected = here.generate(SEA, max_tokens=40, temperature=0)
    asked = {"model": "bluejay-tiny", "prompt": SEA, "max_tokens": 40, "temperature": 0}
    with tiny.client() as client:
        whole = client.completions.create(**asked)
        assert whole.choices[0].text == expected
        pieces = [
            event.choices[0].text for event in client.completions.create(**asked, stream=True)
        ]
    assert "".join(pieces) == expected
    assert len([piece for piece in pieces if piece]) > 1


def test_seeded_text_is_that_of_the_model_here(tiny: Served, here: LanguageModel) -> None:
    expected = here.complete(SEA, max_tokens=24, temperature=1.0, top_p=0.9, seed=5, n=3)
    with tiny.client() as client:
        answer = client.completions.create(
            model="bluejay-tiny", prompt=SEA, max_tokens=24, temperature=1, top_p=0.9, seed=5, n=3
        )
    assert [choice.text for choice in answer.choices] == [sample.text for sample in expected]


def test_echoed_scores_are_those_of_the_model_here(tiny: Served, here: LanguageModel) -> None:
    text = "It was a dark and stormy night; the rain fell in torrents, and nobody went out."
    ids = here.prompt_ids(text)
    rows = here.logits(ids).astype(np.float64)
    rows[:, ~here.allowed] = -np.inf
    highest = rows.max(axis=-1, keepdims=True)
    scores = rows - highest - np.log(np.exp(rows - highest).sum(axis=-1, keepdims=True))
    expected = [scores[place, token] for place, token in enumerate(ids[1:])]
    with tiny.client() as client:
        answer = client.completions.create(
            model="bluejay-tiny", prompt=text, max_tokens=0, echo=True, logprobs=1
        )
    found = answer.choices[0].logprobs
    assert found is not None
    assert found.token_logprobs is not None
    assert found.tokens is not None
    assert "".join(found.tokens) == text
    # The document start stands before the text and is not shown.
    assert len(found.tokens) == len(ids) - 1
    assert found.token_logprobs[1:] == pytest.approx(expected[1:], abs=1e-4)


def test_vectors_are_means_of_the_last_hidden_states(tiny: Served, here: LanguageModel) -> None:
    ids = jnp.asarray([here.prompt_ids(SEA)], jnp.int32)
    params, config = here.runner.params, here.config

    @jax.jit
    def read(params: DecoderParams) -> jax.Array:
        return final_norm(params, residual(params, ids, config=config), config=config)

    states = np.asarray(read(params))
    mean = states[0].astype(np.float64).mean(axis=0)
    with tiny.client() as client:
        answer = client.embeddings.create(model="bluejay-tiny", input=SEA)
    found = np.asarray(answer.data[0].embedding)
    assert found == pytest.approx(mean / np.linalg.norm(mean), abs=1e-5)


def test_words_are_those_of_the_model_here(tiny: Served, here: LanguageModel) -> None:
    status, answer = tiny.request("POST", "/v1/suggest", {"text": "I lo", "k": 4})
    assert status == 200
    found = [(item["word"], item["probability"]) for item in answer["suggestions"]]
    assert [word for word, _ in found] == [word for word, _ in here.suggest("I lo", k=4)]
    assert [share for _, share in found] == pytest.approx(
        [share for _, share in here.suggest("I lo", k=4)], abs=1e-6
    )


def test_the_command_line_writes_by_it(tiny: Served, here: LanguageModel) -> None:
    asked = ["generate", SEA, "--url", tiny.url, "--max-tokens", "12", "--temperature", "0"]
    done = subprocess.run(
        [sys.executable, "-m", "bluejay", *asked],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    assert done.stdout == SEA + here.generate(SEA, max_tokens=12, temperature=0) + "\n"


MIXED: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "a", "max_tokens": 1}),
    ("/v1/completions", {"prompt": SEA * 20, "max_tokens": 30, "n": 3, "logprobs": 5}),
    ("/v1/completions", {"prompt": ["x", SEA], "best_of": 4, "presence_penalty": 1.0}),
    ("/v1/completions", {"prompt": SEA * 24, "max_tokens": 0, "echo": True, "logprobs": 20}),
    ("/v1/completions", {"prompt": "b", "logit_bias": {"40": 5}, "top_k": 3, "min_p": 0.1}),
    ("/api/v1/generate", {"prompt": "c", "mirostat": 2, "max_length": 5}),
    ("/api/v1/generate", {"prompt": "d", "dry_multiplier": 0.8, "max_length": 20}),
    ("/v1/completions", {"prompt": "e", "grammar": "root ::= [a-z]+ [.]", "max_tokens": 9}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 9}),
    ("/v1/responses", {"input": "Hello", "max_output_tokens": 16}),
    ("/v1/embeddings", {"input": [SEA, "b" * 200, SEA * 10], "pooling": "last"}),
    ("/v1/suggest", {"text": SEA * 30 + " the"}),
    ("/v1/suggest", {"text": "An", "k": 20, "max_calls": 128}),
    ("/tokenize", {"content": "a tale"}),
    ("/api/v1/generate", {"prompt": "The sea", "max_length": 12, "top_a": 0.1, "tfs": 0.9}),
]


def test_nothing_is_compiled_after_it_is_ready(tiny: Served) -> None:
    answers: list[tuple[int, Any]] = []

    def ask(path: str, body: dict[str, Any]) -> None:
        answers.append(tiny.request("POST", path, body))

    threads = [threading.Thread(target=ask, args=item) for item in MIXED]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert [answer for answer in answers if answer[0] != 200] == []
    assert len(answers) == len(MIXED)
    figures = tiny.figures()
    assert figures["bluejay_recompiles_total"] == 0
    assert figures["bluejay_generation_tokens_total"] > 100
    assert figures["bluejay_num_requests_running"] == 0


def test_nothing_of_a_text_is_in_the_log(tiny: Served) -> None:
    tiny.request("POST", "/v1/completions", {"prompt": "quetzalcoatl", "max_tokens": 2})
    log = tiny.log.read_text()
    assert "POST /v1/completions 200" in log
    assert "quetzalcoatl" not in log
    assert "Traceback" not in log


def test_a_port_that_is_taken_is_told_at_once(tiny: Served) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bluejay", "serve", "bluejay-tiny", "--port", str(tiny.port)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 2
    assert f"Port {tiny.port} of 127.0.0.1 is taken" in done.stderr
    assert "Loading" not in done.stderr


def test_a_killed_server_starts_again_where_it_was_and_ends_in_order(
    tiny: Served, tmp_path: Path
) -> None:
    """Last, for it ends the server of the others."""
    with tiny.client() as client:
        stream = client.completions.create(
            model="bluejay-tiny", prompt="Once", max_tokens=240, stream=True
        )
        next(iter(stream))
        tiny.process.kill()
        with pytest.raises(APIConnectionError):
            for _ in stream:
                pass
    assert tiny.process.wait(PATIENCE) == -signal.SIGKILL
    base = write_text_model(tmp_path / "base")
    other = write_text_model(tmp_path / "other", seed=9)
    keys = tmp_path / "keys"
    keys.write_text("first-key\nsecond-key\n")
    options = ["--port", str(tiny.port), "--context", "256", "--alias", "gpt-3.5-turbo"]
    options += ["--adapter", f"pirate={other}", "--api-key-file", str(keys), "--log-json"]
    again = start(tmp_path, str(base), *options, key="first-key", BLUEJAY_SERVE_SLOTS="2")
    with running(again):
        again.wait_until_ready()
        assert "  2 slots of 256 tokens: " in again.said[1]
        assert "  adapters: pirate" in again.said
        _check_names_and_keys(again, base=base, other=other)
        _check_end_under_a_stream(again)
    for line in again.log.read_text().splitlines():
        assert json.loads(line)["level"] == "info"


def _check_names_and_keys(served: Served, *, base: Path, other: Path) -> None:
    asked = {"prompt": "the sea", "max_tokens": 12, "temperature": 0}
    texts = {}
    with served.client() as client:
        assert [card.id for card in client.models.list().data] == ["base", "pirate"]
        for name in ("base", "gpt-3.5-turbo", "pirate"):
            texts[name] = client.completions.create(model=name, **asked).choices[0].text
        with pytest.raises(NotFoundError, match="no model 'other'"):
            client.completions.create(model="other", **asked)
    expected = [
        bluejay.load(place).generate("the sea", max_tokens=12, temperature=0.0)
        for place in (base, other)
    ]
    assert texts == {"base": expected[0], "gpt-3.5-turbo": expected[0], "pirate": expected[1]}
    assert expected[0] != expected[1]
    with served.client("third-key") as client, pytest.raises(AuthenticationError):
        client.models.list()
    with served.client("second-key") as client:
        assert len(client.models.list().data) == 2


def _check_end_under_a_stream(served: Served) -> None:
    with served.client() as client:
        stream = client.completions.create(
            model="base", prompt="the sea", max_tokens=250, stream=True, logit_bias={"0": -100}
        )
        events = iter(stream)
        next(events)
        served.process.send_signal(signal.SIGTERM)
        rest = list(events)
    assert rest[-1].choices[0].finish_reason in ("stop", "length")
    assert served.process.wait(PATIENCE) == 0
    assert served.rest().splitlines()[-1] == "Stopped."
