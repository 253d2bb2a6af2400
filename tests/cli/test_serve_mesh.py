"""`bluejay serve --mesh` on two simulated devices: what clients get is what one device gives."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bluejay
from bluejay.generation.generate import allowed_log_probabilities
from bluejay.generation.hidden_states import HiddenStates
from bluejay.runs.language_model import LanguageModel
from bluejay.serving.logprobs import shown_token
from cli.served_process import PATIENCE, Served, running, start
from text_models import write_text_model

# Unoptimized, the programs of a start compile in three quarters of the time.
TWO_DEVICES = {
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"
}
SKY = "the sky is wide and the sea"
# Sums over two devices are rounded in another order; logits are a few nats.
TOLERANCE = 2e-5
SEEDED = {"prompt": SKY, "max_tokens": 24, "temperature": 1, "top_p": 0.9, "seed": 7, "n": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A model and a fine-tuned copy of it, by their shapes."""
    folder = tmp_path_factory.mktemp("mesh")
    return write_text_model(folder / "base"), write_text_model(folder / "other", seed=9)


@pytest.fixture(scope="module")
def served(
    folders: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:
    base, other = folders
    options = ["--port", "0", "--slots", "3", "--context", "256", "--adapter", f"pirate={other}"]
    options += ["--mesh", "model=2"]
    with running(
        start(tmp_path_factory.mktemp("served"), str(base), *options, **TWO_DEVICES)
    ) as found:
        found.wait_until_ready()
        yield found


@pytest.fixture(scope="module")
def here(folders: tuple[Path, Path]) -> LanguageModel:
    """The same model on one device."""
    return bluejay.load(folders[0])


def ask(served: Served, path: str, body: dict[str, Any]) -> Any:
    status, answer = served.request("POST", path, body)
    assert status == 200, answer
    return answer


def test_it_says_how_many_devices_share_the_model(served: Served) -> None:
    assert "  shared by 2 devices, with " in served.said[2]


@pytest.mark.parametrize("name", ["base", "pirate"])
def test_greedy_text_and_likeliest_tokens_are_those_of_one_device(
    served: Served, folders: tuple[Path, Path], name: str
) -> None:
    one = bluejay.load(folders[["base", "pirate"].index(name)])
    [expected] = one.complete(SKY, max_tokens=24, temperature=0)
    body = {"model": name, "prompt": SKY, "max_tokens": 24, "temperature": 0, "logprobs": 5}
    [choice] = ask(served, "/v1/completions", body)["choices"]
    assert choice["text"] == expected.text
    ids = one.prompt_ids(SKY)
    rows = allowed_log_probabilities(one.logits([*ids, *expected.ids[:-1]]), one.allowed)
    for place, row in enumerate(rows[len(ids) - 1 :]):
        assert choice["logprobs"]["token_logprobs"][place] == pytest.approx(
            row[expected.ids[place]], abs=TOLERANCE
        )
        likeliest = {shown_token(one.tokenizer, int(n)): row[n] for n in np.argsort(row)[-5:]}
        found = choice["logprobs"]["top_logprobs"][place]
        assert found == pytest.approx(likeliest, abs=TOLERANCE)


def test_echoed_scores_are_those_of_one_device(served: Served, here: LanguageModel) -> None:
    ids = here.prompt_ids(SKY * 6)
    assert len(ids) > 64
    context, rest = ids[:1], ids[1:]
    expected, _ = here.score_ids(context, rest)
    body = {"prompt": ids, "max_tokens": 0, "echo": True, "logprobs": 0}
    [choice] = ask(served, "/v1/completions", body)["choices"]
    found = choice["logprobs"]["token_logprobs"][-len(rest) :]
    assert sum(found) == pytest.approx(expected, abs=TOLERANCE * len(rest))


def test_a_seed_gives_the_same_text_idle_and_loaded(served: Served) -> None:
    alone = ask(served, "/v1/completions", SEEDED)["choices"]
    answers: list[Any] = []

    def work(path: str, body: dict[str, Any]) -> None:
        answers.append(ask(served, path, body))

    others = [
        ("/v1/completions", {"prompt": SKY * 5, "max_tokens": 60, "n": 2, "presence_penalty": 1}),
        ("/v1/completions", {"prompt": "a", "max_tokens": 9, "grammar": "root ::= [a-z]+ [.]"}),
        ("/v1/completions", {"prompt": "b", "logit_bias": {"40": 5}, "model": "pirate"}),
        ("/v1/completions", {"prompt": SKY * 9, "max_tokens": 0, "echo": True, "logprobs": 3}),
        ("/v1/embeddings", {"input": [SKY, "b" * 100, SKY * 5]}),
        ("/v1/suggest", {"text": "the s", "k": 9}),
        ("/v1/completions", SEEDED),
        ("/v1/suggest", {"text": SKY * 9 + " the"}),
        ("/v1/embeddings", {"input": SKY, "pooling": "last"}),
    ]
    threads = [threading.Thread(target=work, args=other) for other in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(answers) == len(others)
    texts = [[choice["text"] for choice in a["choices"]] for a in answers if "choices" in a]
    assert [choice["text"] for choice in alone] in texts
    assert served.figures()["bluejay_recompiles_total"] == 0


def test_words_and_vectors_are_those_of_one_device(served: Served, here: LanguageModel) -> None:
    found = ask(served, "/v1/suggest", {"text": "the s", "k": 4})["suggestions"]
    expected = here.suggest("the s", k=4)
    assert [item["word"] for item in found] == [word for word, _ in expected]
    assert [item["probability"] for item in found] == pytest.approx(
        [share for _, share in expected], abs=TOLERANCE
    )
    [data] = ask(served, "/v1/embeddings", {"input": SKY})["data"]
    states = HiddenStates(here.runner, context_length=256)
    mean = states.pooled(here.prompt_ids(SKY), pooling="mean")
    assert data["embedding"] == pytest.approx(mean / np.linalg.norm(mean), abs=TOLERANCE)
