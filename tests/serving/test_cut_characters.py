"""A character that `max_tokens` cuts is the same streamed, whole, and decoded: over the socket."""

import json
from collections.abc import Iterator, Sequence
from itertools import product

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bluejay.generation.engine_requests import (
    EngineEvent,
    EngineLimits,
    EngineRequest,
    Finished,
    NewTokens,
    PromptProgress,
    TokenScore,
)
from bluejay.vocab.gpt2 import gpt2_tokenizer
from bluejay.vocab.tokenizer import Tokenizer
from serving.live_server import Raw
from serving.stub_server import serve_stub
from serving.text_server import small_tokenizer
from tokenizers_for_tests import codegen_tokenizer

EMOJI = ["😀", "👩‍👩‍👧‍👦", "🇩🇪", "🏴‍☠️", "é", "e\u0301", "日本語", "\U0010ffff", "𝄞"]
# One byte of each kind that UTF-8 tells apart (Unicode 15, table 3-7), with the borders.
KINDS = bytes.fromhex("00417f808f909fa0bfc1c2dfe0e1ecedeeeff0f1f3f4f5ff")
BYTES = small_tokenizer()
BYTE_IDS = {data: i for i, data in enumerate(BYTES.token_bytes_table()) if data and len(data) == 1}


def says_the_prompt(request: EngineRequest) -> Iterator[EngineEvent]:
    """The prompt again, one id at a time, up to `max_tokens`."""
    [prompt] = request.prompts
    yield PromptProgress(num_done=len(prompt), num_tokens=len(prompt), num_cached=0)
    for token in prompt[: request.max_tokens]:
        yield NewTokens(scores=(TokenScore(id=token, logprob=-1.0),))
    yield Finished(reason="length")


@pytest.fixture(scope="module")
def server() -> Iterator[Raw]:
    limits = EngineLimits(queued_requests=512, queued_tokens=100_000)
    with serve_stub(says_the_prompt, engine_limits=limits) as (raw, _):
        yield raw


def whole(raw: Raw, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[str]:
    body = json.dumps({"prompt": prompts, "max_tokens": max_tokens}).encode()
    answer = raw.post("/v1/completions", body)
    assert answer.status == 200, answer.body
    return [choice["text"] for choice in json.loads(answer.body)["choices"]]


def streamed(raw: Raw, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[str]:
    body = json.dumps({"prompt": prompts, "max_tokens": max_tokens, "stream": True}).encode()
    events = raw.post("/v1/completions", body).body.decode().split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    texts = [""] * len(prompts)
    for event in events[:-2]:
        for choice in json.loads(event.removeprefix("data: "))["choices"]:
            texts[choice["index"]] += choice["text"]
    return texts


def ids_of(data: bytes) -> list[int]:
    return [BYTE_IDS[bytes([byte])] for byte in data]


@pytest.mark.parametrize("text", EMOJI)
def test_every_cut_of_a_character_is_the_same_in_every_form(server: Raw, text: str) -> None:
    ids = ids_of(b"a" + text.encode() + b"b")
    for cut in range(1, len(ids) + 1):
        expected = BYTES.decode(ids[:cut])
        assert whole(server, [ids], cut) == streamed(server, [ids], cut) == [expected]


def test_sequences_of_every_kind_of_byte_cut_anywhere(server: Raw) -> None:
    """All pairs, and all beginnings of four bytes that lead to a character or just not."""
    leads = [byte for byte in KINDS if byte >= 0xC1]
    middles = [byte for byte in KINDS if 0x7F <= byte < 0xC1]
    sequences = [bytes(pair) for pair in product(KINDS, KINDS)]
    sequences += [bytes(three) for three in product(leads, middles, middles)]
    sequences += [bytes(four) for four in product(leads[-6:], middles[::2], b"\x80", b"\xbfA")]
    assert len(sequences) > 1_300
    for begin in range(0, len(sequences), 64):
        ids = [ids_of(data) for data in sequences[begin : begin + 64]]
        cut = 2 + begin % 3
        expected = [BYTES.decode(one[:cut]) for one in ids]
        assert whole(server, ids, cut) == streamed(server, ids, cut) == expected


ALL = [gpt2_tokenizer(), codegen_tokenizer(), small_tokenizer()]


@pytest.mark.parametrize("tokenizer", ALL, ids=["gpt2", "codegen", "bytes"])
def test_every_character_of_unicode_survives(tokenizer: Tokenizer) -> None:
    """Each of the 1,112,064, in texts of a plane's quarter at a time."""
    characters = [chr(point) for point in range(0x110000) if not 0xD800 <= point < 0xE000]
    assert len(characters) == 1_112_064
    for begin in range(0, len(characters), 1 << 14):
        text = "".join(characters[begin : begin + (1 << 14)])
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("tokenizer", ALL, ids=["gpt2", "codegen", "bytes"])
@settings(max_examples=100, deadline=None)
@example("\u0000\ufeff\ufffe\U0010ffff")
@example("a\u0301\u200d\u200d 👩‍👩‍👧‍👦\r\n")
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_survives(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text
