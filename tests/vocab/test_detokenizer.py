import inspect
import random
from collections.abc import Callable
from functools import partial
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluejay.core.errors import DataError
from bluejay.vocab.detokenizer import IncrementalDetokenizer
from bluejay.vocab.gpt2 import gpt2_tokenizer, gptj_tokenizer
from bluejay.vocab.tokenizer import Tokenizer
from tokenizers_for_tests import codegen_tokenizer, smollm2_tokenizer

# One byte of each kind that UTF-8 tells apart (Unicode 15, table 3-7), with the borders.
KINDS = bytes.fromhex("00417f 80 8f90 9f a0 bf c1c2df e0e1ecedee ef f0f1f3f4f5ff".replace(" ", ""))


def streamed(tokenizer: Tokenizer, ids: list[int], *, skip_special: bool = False) -> str:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special=skip_special)
    parts = [detokenizer.feed(i) for i in ids]
    assert len(detokenizer.pending) < 4
    parts.append(detokenizer.flush())
    assert detokenizer.num_chars == sum(map(len, parts))
    return "".join(parts)


def unchecked() -> tuple[Callable[[bytes], str], Callable[[], str]]:
    """`feed_bytes` and `flush` without this suite's type checks, which take most of the time."""
    detokenizer = IncrementalDetokenizer(gpt2_tokenizer())
    feed = inspect.unwrap(IncrementalDetokenizer.feed_bytes)
    return partial(feed, detokenizer), partial(
        inspect.unwrap(IncrementalDetokenizer.flush), detokenizer
    )


@pytest.mark.parametrize(
    "tokenizer", [gpt2_tokenizer(), gptj_tokenizer(), codegen_tokenizer(), smollm2_tokenizer()]
)
def test_streamed_is_decoded_for_random_ids(tokenizer: Tokenizer) -> None:
    generator = random.Random(7)
    for _ in range(100):
        ids = generator.choices(range(tokenizer.vocab_size), k=generator.randint(0, 40))
        for skip_special in (False, True):
            expected = tokenizer.decode(ids, skip_special=skip_special)
            assert streamed(tokenizer, ids, skip_special=skip_special) == expected


@pytest.mark.parametrize("tokenizer", [gpt2_tokenizer(), smollm2_tokenizer()])
def test_streamed_is_decoded_for_single_byte_tokens(tokenizer: Tokenizer) -> None:
    table = tokenizer.token_bytes_table()
    pieces = [i for i, data in enumerate(table) if data is not None and max(data) >= 0x80]
    generator = random.Random(8)
    for _ in range(300):
        ids = generator.choices(pieces, k=12)
        assert streamed(tokenizer, ids) == tokenizer.decode(ids)


def test_all_two_byte_sequences() -> None:
    feed, flush = unchecked()
    single = [bytes([byte]) for byte in range(256)]
    for first in single:
        for second in single:
            text = feed(first) + feed(second) + flush()
            assert text == (first + second).decode("utf-8", "replace")


def test_all_kinds_of_four_byte_sequences() -> None:
    feed, flush = unchecked()
    single = [bytes([byte]) for byte in KINDS]
    for first, second, third, fourth in product(single, single, single[3:10], single[3:10]):
        text = feed(first) + feed(second) + feed(third) + feed(fourth) + flush()
        assert text == (first + second + third + fourth).decode("utf-8", "replace")


def test_200_000_three_byte_sequences() -> None:
    data = random.Random(9).randbytes(600_000)
    feed, flush = unchecked()
    for i in range(0, len(data), 3):
        text = feed(data[i : i + 1]) + feed(data[i + 1 : i + 3]) + flush()
        if text != data[i : i + 3].decode("utf-8", "replace"):
            pytest.fail(f"{data[i : i + 3]!r} became {text!r}")


@given(st.lists(st.sampled_from(["😀".encode(), b"\xf0\x9f", b"\xe2\x82", b"\xa0", b"a", b"\xff"])))
def test_any_cut_of_any_bytes(pieces: list[bytes]) -> None:
    detokenizer = IncrementalDetokenizer(gpt2_tokenizer())
    text = "".join(map(detokenizer.feed_bytes, pieces)) + detokenizer.flush()
    assert text == b"".join(pieces).decode("utf-8", "replace")


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_an_emoji_is_held_back_until_it_is_whole(cut: int) -> None:
    emoji = "😀".encode()
    detokenizer = IncrementalDetokenizer(gpt2_tokenizer())
    assert detokenizer.feed_bytes(b"a" + emoji[:cut]) == "a"
    assert detokenizer.pending == emoji[:cut]
    assert detokenizer.feed_bytes(emoji[cut:]) == "😀"
    assert (detokenizer.pending, detokenizer.num_chars) == (b"", 2)
    assert detokenizer.feed_bytes(emoji[:cut]) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.feed_bytes(b"next") == "next"


def test_every_cut_of_max_tokens() -> None:
    tokenizer = gpt2_tokenizer()
    ids = tokenizer.encode("👨‍👩‍👧‍👦 naïve 日本語 🇩🇪\u0301!")
    for cut in range(len(ids) + 1):
        assert streamed(tokenizer, ids[:cut]) == tokenizer.decode(ids[:cut])


def test_ids_come_one_by_one_or_together() -> None:
    tokenizer = gpt2_tokenizer()
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert detokenizer.feed(15496) + detokenizer.feed([995, 50256]) == "Hello world<|endoftext|>"
    skipping = IncrementalDetokenizer(tokenizer, skip_special=True)
    assert skipping.feed([15496, 50256, 995]) == "Hello world"
    with pytest.raises(DataError, match="id 50257 has no token"):
        detokenizer.feed(50257)
