from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from bluejay.model.presets import gptj_config
from bluejay.serving.limits import RequestLimits
from bluejay.serving.tokens import token_routes
from bluejay.vocab.gpt2 import gpt2_tokenizer
from serving.live_server import quick_limits
from serving.route_server import Client, serve_routes
from serving.text_server import END
from tokenizers_for_tests import smollm2_tokenizer

TEXTS = [
    "the sea",
    "",
    " ",
    "naïve 👩‍🚀 日本",
    "a\u0301\r\n\tx",
    "<|endoftext|> is text",
    "\u0000\ufffd",
]


@pytest.fixture(scope="module")
def small() -> Iterator[Client]:
    with serve_routes(token_routes) as client:
        yield client


@pytest.fixture(scope="module", params=["gpt2", "smollm2"])
def real(request: pytest.FixtureRequest) -> Iterator[tuple[Client, Any]]:
    tokenizer = {"gpt2": gpt2_tokenizer, "smollm2": smollm2_tokenizer}[request.param]()
    config = gptj_config(1, 64, 2, rotary_dim=8, vocab_size=50400)
    with serve_routes(token_routes, tokenizer=tokenizer, config=config) as client:
        yield client, tokenizer


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("name", ["content", "prompt", "input"])
def test_text_to_ids_and_back(real: tuple[Client, Any], text: str, name: str) -> None:
    client, tokenizer = real
    found = client.post("/tokenize", **{name: text})
    assert found["tokens"] == tokenizer.encode(text, allow_special=name == "prompt")
    plain = client.post("/tokenize", **{name: text}, parse_special=False)["tokens"]
    assert plain == tokenizer.encode(text)
    assert found["count"] == len(found["tokens"])
    both = {"content": text, "prompt": text}
    assert client.post("/detokenize", tokens=found["tokens"]) == both


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up_and_offsets_are_those_of_the_tokenizer(
    real: tuple[Client, Any], text: str
) -> None:
    client, tokenizer = real
    pieces = client.post("/tokenize", content=text, with_pieces=True)["tokens"]
    data = b"".join(
        bytes(piece["piece"]) if isinstance(piece["piece"], list) else piece["piece"].encode()
        for piece in pieces
    )
    assert data.decode() == text
    assert [piece["id"] for piece in pieces] == tokenizer.encode(text)
    assert [(piece["start"], piece["end"]) for piece in pieces] == tokenizer.offsets(text)


def test_a_part_of_a_character_is_its_bytes(small: Client) -> None:
    pieces = small.post("/tokenize", content="é the", with_pieces=True)["tokens"]
    assert pieces[0] == {"id": pieces[0]["id"], "piece": [0xC3], "start": 0, "end": 1}
    assert pieces[1] == {"id": pieces[1]["id"], "piece": [0xA9], "start": 0, "end": 1}
    assert pieces[2] == {"id": 258, "piece": " the", "start": 1, "end": 5}
    part = small.post("/detokenize", tokens=[pieces[0]["id"]])
    assert part == {"content": "\ufffd", "prompt": "\ufffd"}


def test_the_tokenizer_names_its_special_tokens(real: tuple[Client, Any]) -> None:
    client, tokenizer = real
    info = client.get("/tokenizer_info")
    for name, found in (
        ("bos_token", tokenizer.document_start_id),
        ("eos_token", tokenizer.eos_id),
        ("pad_token", tokenizer.pad_id),
        ("unk_token", tokenizer.unk_id),
    ):
        assert (None if info[name] is None else tokenizer.token_id(info[name])) == found
    assert client.post("/tokenize", prompt=info["bos_token"])["tokens"] == [
        tokenizer.document_start_id
    ]
    assert info["model_max_length"] == 2048


def test_the_document_start_and_special_names_only_where_asked(small: Client) -> None:
    text = "<|endoftext|>"
    assert END not in small.post("/tokenize", content=text)["tokens"]
    assert small.post("/tokenize", content=text, parse_special=True)["tokens"] == [END]
    plain = small.post("/tokenize", content="a")["tokens"]
    for name in ("add_special", "add_special_tokens"):
        assert small.post("/tokenize", content="a", **{name: True})["tokens"] == [END, *plain]
    pieces = small.post("/tokenize", content="a", add_special=True, with_pieces=True)["tokens"]
    assert pieces[0] == {"id": END, "piece": text, "start": 0, "end": 0}


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "content", "there is none of them"),
        ({"content": "a", "prompt": "b"}, "prompt", "content and prompt"),
        ({"content": 5}, "content", "'content' is wrong"),
        ({"content": "a", "texts": 1}, "texts", "no field 'texts'"),
        ({"content": "a", "model": "other"}, "model", "no model 'other'"),
        ({"content": "a" * 101}, "content", "101 characters"),
    ],
)
def test_bad_tokenize_bodies(body: dict[str, Any], param: str, words: str) -> None:
    limits = replace(quick_limits(), request=RequestLimits(prompt_characters=100))
    with serve_routes(token_routes, limits=limits) as client:
        error = client.refusal("/tokenize", **body)
    assert (error["status"], error["param"]) == (404 if param == "model" else 400, param)
    assert words in error["message"]


@pytest.mark.parametrize(
    "tokens", [[260], [-1], [2**31], [2**62], ["a"], [1.5], [True], "a", [[1]]]
)
def test_bad_ids(small: Client, tokens: Any) -> None:
    error = small.refusal("/detokenize", tokens=tokens)
    assert error["status"] == 400
    assert error["param"].startswith("tokens")


def test_long_texts_and_lone_surrogates(small: Client) -> None:
    text = "a\u0301👩‍🚀" * 2000
    found = small.post("/tokenize", content=text)["tokens"]
    assert small.post("/detokenize", tokens=found)["content"] == text
    answer = small.raw.post("/tokenize", b'{"content": "\\ud800"}')
    assert answer.status == 400
