import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluejay.core.errors import DataError, UsageError
from bluejay.vocab.byte_alphabet import BYTE_CHARACTERS
from bluejay.vocab.loading import load_tokenizer
from bluejay.vocab.tokenizer import Tokenizer
from bluejay.vocab.training import train_bpe

TEXTS = [
    "Alice was beginning to get very tired of sitting by her sister on the bank, and of having",
    " nothing to do: once or twice she had peeped into the book her sister was reading, but it",
    " had no pictures or conversations in it. In 1865, on page 1, it said 11, 12 and 1865 again.",
] * 2


def trained(vocab_size: int = 300, **options: bool) -> Tokenizer:
    return train_bpe(TEXTS, vocab_size=vocab_size, **options)  # type: ignore[arg-type]


def test_ids_are_laid_out_as_gpt2s() -> None:
    tokenizer = trained()
    assert tokenizer.vocab_size == 300
    assert tokenizer.token_id("<|endoftext|>") == 299
    assert tokenizer.special_ids == tokenizer.stop_ids == {299}
    assert {tokenizer.token_name(i) for i in range(256)} == set(BYTE_CHARACTERS)
    assert tokenizer.missing_bytes == b""


def test_the_first_merge_is_the_most_frequent_pair() -> None:
    words = [w for text in TEXTS for w in text.replace(" ", " Ġ").split()]
    pairs = Counter(pair for word in words for pair in pairwise(word))
    best = max(pairs.values())
    first = trained().token_name(256)
    assert pairs[first[0], first[1]] == best


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
def test_every_text_survives(text: str) -> None:
    tokenizer = _TRAINED
    assert tokenizer.decode(tokenizer.encode(text)) == text


_TRAINED = train_bpe(TEXTS, vocab_size=290)


def test_training_again_in_another_process_gives_the_same() -> None:
    code = (
        "from bluejay.vocab.training import train_bpe;"
        f"print(train_bpe(iter({TEXTS!r}), vocab_size=300).sha256)"
    )
    runs = {
        subprocess.run(
            [sys.executable, "-c", code],
            check=True,
            capture_output=True,
            text=True,
            env={"PYTHONHASHSEED": seed, "RAYON_NUM_THREADS": threads},
        ).stdout.strip()
        for seed, threads in (("1", "1"), ("2", "4"))
    }
    assert runs == {trained().sha256}


def test_single_digits_stay_apart() -> None:
    texts = ["in 1865 in 1865 in 1866"] * 9
    joined = train_bpe(texts, vocab_size=261)
    apart = train_bpe(texts, vocab_size=258, single_digits=True)
    assert len(joined.encode("1865")) < 4
    assert [apart.token_bytes(i) for i in apart.encode("in1865")] == [b"in", *b"1 8 6 5".split()]


@pytest.mark.parametrize("sign", ["-", " ", "\u0301"])
def test_long_tokens_are_kept_out(sign: str) -> None:
    rulers = [sign * 64] * 50
    with pytest.raises(DataError, match="give only") as caught:
        train_bpe(rulers, vocab_size=400, max_token_length=4)
    size = int(str(caught.value).rpartition(" ")[2])
    short = train_bpe(rulers, vocab_size=size, max_token_length=4)
    longest = max((short.token_bytes(i) for i in range(size - 1)), key=len)
    assert longest == (sign * 4).encode()[:4]


def test_saved_and_loaded(tmp_path: Path) -> None:
    tokenizer = trained(single_digits=True)
    tokenizer.save(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.sha256, loaded.roles) == (tokenizer.sha256, tokenizer.roles)


def test_requests_that_cannot_be_met() -> None:
    with pytest.raises(UsageError, match=r"vocabulary of 256 has no room.*ask for 257 or more"):
        train_bpe(TEXTS, vocab_size=256)
    with pytest.raises(UsageError, match="different names"):
        train_bpe(TEXTS, vocab_size=300, special_tokens=("<a>", "<a>"))
    with pytest.raises(DataError, match="give only 258 tokens of the 1000 asked"):
        train_bpe(["aa aa"], vocab_size=1000)
    with pytest.raises(DataError, match="text 1 has a lone surrogate at position 2"):
        train_bpe(["fine", "no\ud800"], vocab_size=300)
    with pytest.raises(UsageError, match="text 0 is a value of type bytes, not str"):
        train_bpe(iter([b"bytes"]), vocab_size=300)  # type: ignore[list-item]
    with pytest.raises(UsageError, match="at most 1 bytes"):
        train_bpe(TEXTS, vocab_size=300, max_token_length=1)
