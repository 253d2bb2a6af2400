from typing import Any

import numpy as np
import pytest

from bluejay.core.errors import CheckpointError
from bluejay.vocab.byte_alphabet import BYTE_CHARACTERS
from bluejay.vocab.gguf_vocab import tokenizer_from_gguf
from smollm2_vocabulary import smollm2_metadata
from tokenizers_for_tests import smollm2_tokenizer

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def metadata(**changes: Any) -> dict[str, Any]:
    """A small GGUF file's tokenizer, keys without their `tokenizer.ggml.`."""
    tokens = [*SPECIALS, *BYTE_CHARACTERS, "Ġt", "12"]
    values: dict[str, Any] = {
        "model": "gpt2",
        "pre": "smollm",
        "tokens": tokens,
        "token_type": [3] * 3 + [1] * 258,
        "merges": ["Ġ t", "1 2"],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unknown_token_id": 0,
        "padding_token_id": 2,
        "add_bos_token": False,
    }
    values = {key: value for key, value in (values | changes).items() if value is not ...}
    result = {f"tokenizer.ggml.{key}": value for key, value in values.items()}
    return result | {"tokenizer.chat_template": "{{ ignored }}", "general.architecture": "llama"}


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        # As two other engines report them for this model.
        ("Hello world! 123", [19556, 905, 17, 216, 33, 34, 35]),
        ("The capital of France is", [504, 3575, 282, 4649, 314]),
        ("Café déjà vu.", [51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]),
    ],
)
def test_smollm2_ids(text: str, ids: list[int]) -> None:
    assert smollm2_tokenizer().encode(text) == ids


def test_smollm2_roles() -> None:
    tokenizer = tokenizer_from_gguf(smollm2_metadata())
    assert tokenizer.vocab_size == 49152
    assert (tokenizer.bos_id, tokenizer.eos_id) == (1, 2)
    assert tokenizer.document_start_id == 0
    assert tokenizer.stop_ids == {0, 2}
    assert tokenizer.encode("How", add_special=True) == tokenizer.encode("How") == [2020]


def test_smollm2_has_no_token_for_some_bytes() -> None:
    missing = smollm2_tokenizer().missing_bytes
    assert missing.hex() == "04061314161dc0c1f1f2f5f6f7f8f9fafbfcfdfeff"


def test_the_way_of_splitting_follows_its_name() -> None:
    digits, gpt2 = (tokenizer_from_gguf(metadata(pre=pre)) for pre in ("smollm", "gpt-2"))
    assert len(digits.encode("12")) == 2
    assert len(gpt2.encode("12")) == 1
    llama = tokenizer_from_gguf(metadata(pre="llama-bpe"))
    assert llama.encode("12", add_special=False) == gpt2.encode("12")
    assert llama.roles.prefix == ()  # the file says add_bos_token = False
    assert tokenizer_from_gguf(metadata(pre="llama-bpe", add_bos_token=...)).roles.prefix == (1,)


def test_neox_composes_characters_as_its_own_tokenizer() -> None:
    old = metadata(pre=...) | {"general.architecture": "gptneox"}
    tokenizer = tokenizer_from_gguf(old)
    assert tokenizer.encode("e\u0301") == tokenizer.encode("é")


@pytest.mark.parametrize("architecture", ["gpt2", "gptj", "codegen"])
def test_old_files_split_as_their_architecture(architecture: str) -> None:
    for pre in (..., "default"):
        old = metadata(pre=pre) | {"general.architecture": architecture}
        assert len(tokenizer_from_gguf(old).encode("12")) == 1


def test_arrays_are_as_good_as_lists() -> None:
    types = np.asarray(metadata()["tokenizer.ggml.token_type"], np.int32)
    tokenizer = tokenizer_from_gguf(metadata(token_type=types, eos_token_id=np.uint32(2)))
    assert tokenizer.special_ids == {0, 1, 2}
    assert tokenizer.eos_id == 2


def test_kinds_of_tokens() -> None:
    tokens = [*metadata()["tokenizer.ggml.tokens"], "   ", "[PAD262]"]
    types = [3] * 3 + [1] * 258 + [4, 5]
    tokenizer = tokenizer_from_gguf(metadata(tokens=tokens, token_type=types))
    assert tokenizer.encode("   ") == [261]
    assert tokenizer.token_bytes(261) == b"   "
    assert 261 not in tokenizer.special_ids
    assert tokenizer.vocab_size == 262
    assert tokenizer.sampleable_mask(263).tolist() == [True] * 262 + [False]


def test_surroundings_and_turn_ends() -> None:
    tokenizer = tokenizer_from_gguf(
        metadata(add_bos_token=True, add_eos_token=True, eot_token_id=1, padding_token_id=...)
    )
    assert tokenizer.encode(" t", add_special=True) == [1, 259, 2]
    assert tokenizer.stop_ids == {0, 1, 2}
    assert tokenizer.pad_id is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "llama"}, "is 'llama', and only byte-level BPE"),
        ({"model": ...}, "is None, and only"),
        ({"model": "bert"}, "'bert'"),
        ({"pre": "qwen35"}, "splits text by 'qwen35', which is not known"),
        ({"pre": "default"}, "splits text by 'default'"),
        ({"pre": ...}, "splits text by None"),
        ({"pre": 7}, "splits text by 7"),
        ({"tokens": ...}, "no list tokenizer.ggml.tokens"),
        ({"tokens": ["a", "a"], "token_type": [1, 1]}, "'a' as token 0 and 1"),
        ({"tokens": ["a", 5], "token_type": [1, 1]}, "has 5 as token 1, not text"),
        ({"tokens": ["a"], "token_type": [1]}, "bytes that ordinary text needs"),
        ({"token_type": [1]}, "261 tokens and 1 token types"),
        ({"merges": "Ġ t"}, "no list tokenizer.ggml.merges"),
        ({"merges": ["Ġ zz"]}, "merge 0 joins"),
        ({"eos_token_id": 261}, "has 261 as eos_token_id, outside its 261 tokens"),
        ({"bos_token_id": -1}, "has -1 as bos_token_id"),
        ({"bos_token_id": "1"}, "has '1' as bos_token_id"),
    ],
)
def test_files_that_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        tokenizer_from_gguf(metadata(**changes))
    assert message in str(caught.value)
    assert str(caught.value).isprintable()
