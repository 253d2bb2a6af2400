import inspect
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bluejay.core.errors import CheckpointError, DataError, UsageError
from bluejay.vocab.byte_alphabet import bytes_to_token
from bluejay.vocab.gpt2 import gpt2_tokenizer
from bluejay.vocab.roles import SpecialRoles
from bluejay.vocab.tokenizer import Tokenizer
from bluejay.vocab.tokenizer_json import build_backend
from golden_files import load_smollm2_token_ids
from tokenizers_for_tests import CODEGEN_ADDED, codegen_tokenizer, small_document, smollm2_tokenizer

ALL_UNICODE = st.text(st.characters(exclude_categories=("Cs",)), max_size=60)
BOMBS = {
    "one letter": "a" * 10**6,
    "spaces": " " * 10**6,
    "carets": "^" * 10**6,
    "combining marks": "\u0301" * 10**6,
}


@given(ALL_UNICODE)
@example("<|endoftext|>  <|extratoken_7|>")
@example("\U0010ffff\ufffe\x00\r\n\u2028")
def test_every_text_survives(text: str) -> None:
    for tokenizer in (gpt2_tokenizer(), codegen_tokenizer()):
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert b"".join(map(tokenizer.token_bytes, ids)) == text.encode()


@given(ALL_UNICODE)
def test_smollm2_keeps_every_text_that_it_has_bytes_for(text: str) -> None:
    tokenizer = smollm2_tokenizer()
    if set(text.encode()) & set(tokenizer.missing_bytes):
        with pytest.raises(DataError, match=r"character U\+[0-9A-F]{4,6} at position"):
            tokenizer.encode(text)
    else:
        assert tokenizer.decode(tokenizer.encode(text)) == text


@given(st.binary(max_size=60))
def test_every_byte_string_can_be_written_in_ids(data: bytes) -> None:
    tokenizer = gpt2_tokenizer()
    ids = [tokenizer.token_id(bytes_to_token(bytes([byte]))) for byte in data]
    assert tokenizer.decode_bytes([i for i in ids if i is not None]) == data
    assert tokenizer.decode([i for i in ids if i is not None]) == data.decode(errors="replace")


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_go_through(name: str) -> None:
    tokenizer = gpt2_tokenizer()
    ids = tokenizer.encode(BOMBS[name])
    assert tokenizer.decode_bytes(ids).decode() == BOMBS[name]


def test_long_texts_get_the_ids_of_short_ones() -> None:
    line = "The cat's 12 kittens\n"
    tokenizer = gpt2_tokenizer()
    assert tokenizer.encode(line * 4000) == tokenizer.encode(line) * 4000


def test_names_of_special_tokens_are_text_unless_allowed() -> None:
    gpt2, smollm2 = gpt2_tokenizer(), smollm2_tokenizer()
    assert gpt2.encode("a<|endoftext|>b") == [64, 27, 91, 437, 1659, 5239, 91, 29, 65]
    assert gpt2.encode("a<|endoftext|>b", allow_special=True) == [64, 50256, 65]
    assert smollm2.encode("<|im_start|>user", allow_special=True) == [1, 4093]
    assert not smollm2.special_ids & set(smollm2.encode("<|im_start|>user"))
    assert gpt2.encode("a<|endoftext|>b") == [64, 27, 91, 437, 1659, 5239, 91, 29, 65]
    assert gpt2.decode([64, 50256, 65]) == "a<|endoftext|>b"
    assert gpt2.decode([64, 50256, 65], skip_special=True) == "ab"


def test_codegen_writes_runs_of_spaces_with_ids_above_the_base() -> None:
    tokenizer = codegen_tokenizer()
    assert tokenizer.vocab_size == 50295
    assert tokenizer.encode("    x\t\t\t") == [50284, 87, 50293]
    for text, token_id in CODEGEN_ADDED.items():
        assert tokenizer.encode(text) == [token_id]
        assert tokenizer.token_bytes(token_id) == text.encode()
    mask = tokenizer.sampleable_mask(51200)
    np.testing.assert_array_equal(mask, np.arange(51200) < 50295)
    assert tokenizer.special_ids == {50256}
    assert tokenizer.bos_id == 50256


def test_ids_of_llama_cpp() -> None:
    cases = load_smollm2_token_ids()
    assert len(cases) > 50
    assert [smollm2_tokenizer().encode(text) for text, _ in cases] == [ids for _, ids in cases]


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=30))
@example(" héllo 😀 wörld")
def test_offsets_are_the_characters_a_token_has_bytes_of(text: str) -> None:
    tokenizer = gpt2_tokenizer()
    char_of_byte = [i for i, char in enumerate(text) for _ in char.encode()]
    start, expected = 0, []
    for token_id in tokenizer.encode(text):
        end = start + len(tokenizer.token_bytes(token_id))
        expected.append((char_of_byte[start], char_of_byte[end - 1] + 1))
        start = end
    assert tokenizer.offsets(text) == expected


def test_offsets_of_an_emoji_cut_in_two() -> None:
    assert gpt2_tokenizer().offsets("a 😀") == [(0, 1), (1, 3), (2, 3)]


def test_errors_name_the_value() -> None:
    tokenizer = gpt2_tokenizer()
    for bad in (-1, 50257, 2**31, 2**63):
        with pytest.raises(DataError, match=f"id {bad} has no token.*0 to 50256"):
            tokenizer.decode([15496, bad])
        with pytest.raises(DataError, match=f"id {bad} has no token"):
            tokenizer.token_bytes(bad)
    with pytest.raises(DataError, match=r"lone surrogate U\+D800 at position 1"):
        tokenizer.encode("a\ud800")
    with pytest.raises(DataError, match=r"lone surrogate U\+DFFF at position 0"):
        tokenizer.encode_batch(["fine", "\udfff"])
    with pytest.raises(DataError, match="lone surrogate"):
        tokenizer.offsets("\ud83d")
    with pytest.raises(DataError, match=r"U\+0004 at position 2"):
        smollm2_tokenizer().encode("ok\x04")


@pytest.mark.parametrize("value", [b"bytes", 5, None, ["a"]])
def test_text_must_be_str(value: object) -> None:
    encode = inspect.unwrap(Tokenizer.encode)  # without the type checks of this test suite
    with pytest.raises((UsageError, TypeError), match=r"must be str|no len"):
        encode(gpt2_tokenizer(), value)  # type: ignore[arg-type]


def test_a_model_with_too_few_rows_is_refused() -> None:
    with pytest.raises(UsageError, match=r"50000 vocabulary rows.*needs 50257"):
        gpt2_tokenizer().sampleable_mask(50000)


def test_special_tokens_stay_sampleable() -> None:
    mask = smollm2_tokenizer().sampleable_mask(49152)
    assert mask.all()
    assert smollm2_tokenizer().special_ids == set(range(17))


def test_roles_must_be_tokens() -> None:
    backend = build_backend(small_document(), where="small")
    with pytest.raises(CheckpointError, match="special id 260 has no token"):
        Tokenizer(backend, roles=SpecialRoles(eos=260))


def test_identity_follows_the_ids_and_nothing_else() -> None:
    def identity(document: dict[str, Any], *, roles: SpecialRoles | None = None) -> str:
        return Tokenizer(build_backend(document, where="small"), roles=roles).sha256

    first = identity(small_document())
    reordered = small_document()
    reordered["model"]["vocab"] = dict(reversed(reordered["model"]["vocab"].items()))
    reordered["pre_tokenizer"]["trim_offsets"] = False
    reordered["truncation"] = {"max_length": 1}
    assert identity(reordered, roles=SpecialRoles(eos=0)) == first
    fewer_merges, digits, renamed = small_document(), small_document(), small_document()
    fewer_merges["model"]["merges"].pop()
    digits["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [
            {"type": "Digits", "individual_digits": True},
            digits["pre_tokenizer"],
        ],
    }
    renamed["added_tokens"][0]["content"] = "<|end|>"
    assert len({first, *map(identity, (fewer_merges, digits, renamed))}) == 4


def test_add_special_puts_prefix_and_suffix_around() -> None:
    roles = SpecialRoles(prefix=(259,), suffix=(0, 1))
    tokenizer = Tokenizer(build_backend(small_document(), where="small"), roles=roles)
    the = tokenizer.encode(" the")
    assert the == [258]
    assert tokenizer.encode(" the", add_special=True) == [259, 258, 0, 1]


@settings(max_examples=20)
@given(st.lists(ALL_UNICODE, max_size=8))
def test_batches_are_as_single_texts(texts: list[str]) -> None:
    tokenizer = codegen_tokenizer()
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


def test_the_vocabulary_starts_without_jax() -> None:
    code = (
        "import sys, bluejay.vocab; assert not {'tokenizers', 'numpy'} & {*sys.modules};"
        "import bluejay.vocab.gguf_vocab, bluejay.vocab.detokenizer;"
        "assert 'jax' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
