import base64
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import openai
import pytest
from numpy.typing import NDArray
from openai import OpenAI

from bluejay.serving.embeddings import embedding_routes
from serving.live_server import PATIENCE
from serving.route_server import Client, serve_routes
from serving.table_models import STATES, WIDTH, TableEmbedder
from serving.text_server import END, small_tokenizer


@pytest.fixture
def served() -> Iterator[tuple[Client, TableEmbedder]]:
    embedder = TableEmbedder()
    with serve_routes(lambda service: embedding_routes(service, embedder)) as client:
        yield client, embedder


@pytest.fixture
def openai_client(served: tuple[Client, TableEmbedder]) -> Iterator[OpenAI]:
    url = f"http://127.0.0.1:{served[0].raw.port}/v1"
    with OpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


def expected(text: str, *, last: bool = False) -> NDArray[np.float64]:
    states = STATES[[END, *small_tokenizer().encode(text)]].astype(np.float64)
    vector = states[-1] if last else states.mean(axis=0)
    return np.asarray(vector / np.linalg.norm(vector))


def test_openai_s_client_gets_vectors_which_it_asks_for_in_base64(openai_client: OpenAI) -> None:
    answer = openai_client.embeddings.create(input=["the sea", "a"], model="owner/small")
    assert [item.index for item in answer.data] == [0, 1]
    for item, text in zip(answer.data, ["the sea", "a"], strict=True):
        np.testing.assert_allclose(item.embedding, expected(text), atol=1e-6)
        assert np.linalg.norm(item.embedding) == pytest.approx(1, abs=1e-6)
    assert answer.model == "owner/small"
    num_tokens = sum(1 + len(small_tokenizer().encode(text)) for text in ["the sea", "a"])
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == num_tokens


def test_numbers_and_base64_are_the_same(served: tuple[Client, TableEmbedder]) -> None:
    client, _ = served
    numbers = client.post("/v1/embeddings", input="the sea")["data"][0]["embedding"]
    packed = client.post("/v1/embeddings", input="the sea", encoding_format="base64")
    data = base64.b64decode(packed["data"][0]["embedding"], validate=True)
    assert list(np.frombuffer(data, "<f4")) == list(np.asarray(numbers, np.float32))


def test_pooling_takes_all_tokens_or_the_last(served: tuple[Client, TableEmbedder]) -> None:
    client, _ = served
    for pooling, last in [("mean", False), ("last", True), (None, False)]:
        [found] = client.post("/v1/embeddings", input="the sea", pooling=pooling)["data"]
        np.testing.assert_allclose(found["embedding"], expected("the sea", last=last), atol=1e-6)


@pytest.mark.parametrize(
    ("given", "ids"),
    [
        ("ab", [[END, 97, 98]]),
        (["ab", "a"], [[END, 97, 98], [END, 97]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
    ],
)
def test_all_kinds_of_input(
    served: tuple[Client, TableEmbedder], given: Any, ids: list[list[int]]
) -> None:
    client, embedder = served
    assert small_tokenizer().encode("ab") == [97, 98]
    found = client.post("/v1/embeddings", input=given, model="pirate")
    assert [item["index"] for item in found["data"]] == list(range(len(ids)))
    assert [one["ids"] for one in embedder.asked] == ids
    assert {one["adapter"] for one in embedder.asked} == {"pirate"}


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "input", "missing"),
        ({"input": ""}, "input", "input is empty"),
        ({"input": []}, "input", "empty list"),
        ({"input": ["a", 1]}, "input", "mixes"),
        ({"input": [260]}, "input", "260"),
        ({"input": [[]]}, "input", "no tokens"),
        ({"input": ["a"] * 65}, "input", "65 prompts"),
        ({"input": [64] * 2049}, "input", "2049 tokens"),
        ({"input": "a", "dimensions": 3}, "dimensions", "have 5"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "int8"),
        ({"input": "a", "pooling": "max"}, "pooling", "max"),
        ({"input": "a", "texts": 1}, "texts", "no field"),
    ],
)
def test_bad_bodies(
    served: tuple[Client, TableEmbedder], body: dict[str, Any], param: str, words: str
) -> None:
    error = served[0].refusal("/v1/embeddings", **body)
    assert (error["status"], error["param"]) == (400, param)
    assert words in error["message"]


def test_full_dimensions_are_taken(served: tuple[Client, TableEmbedder]) -> None:
    [found] = served[0].post("/v1/embeddings", input="a", dimensions=WIDTH)["data"]
    assert len(found["embedding"]) == WIDTH


def test_a_full_queue_and_damaged_weights(openai_client: OpenAI) -> None:
    with pytest.raises(openai.RateLimitError):
        openai_client.embeddings.create(input=[7], model="small")
    with pytest.raises(openai.InternalServerError, match="weights are damaged"):
        openai_client.embeddings.create(input=[8], model="small")


def test_a_client_that_leaves_costs_no_further_vector(
    served: tuple[Client, TableEmbedder],
) -> None:
    client, embedder = served
    embedder.gate = threading.Event()
    with client.raw.connect() as connection:
        body = b'{"input": ["a", "b", "c"]}'
        headers = [("Content-Type", "application/json")]
        connection.sendall(client.raw.encode("POST", "/v1/embeddings", headers=headers, body=body))
        assert embedder.began.wait(PATIENCE)
    pause = threading.Event()
    for _ in range(int(PATIENCE * 20)):
        if b'status="499"' in client.raw.request("GET", "/metrics").body:
            break
        pause.wait(0.05)
    embedder.gate.set()
    client.post("/v1/embeddings", input="z")
    texts = [small_tokenizer().decode(one["ids"][1:]) for one in embedder.asked]
    assert texts == ["a", "z"]
