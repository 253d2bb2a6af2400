"""Tokenizers that several tests use, each made once."""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from bluejay.vocab.byte_alphabet import BYTE_CHARACTERS
from bluejay.vocab.gguf_vocab import tokenizer_from_gguf
from bluejay.vocab.gpt2 import gpt2_tokenizer
from bluejay.vocab.loading import load_tokenizer
from bluejay.vocab.tokenizer import Tokenizer
from smollm2_vocabulary import smollm2_metadata

# As published in CodeGen's added_tokens.json: runs of 31 to 2 spaces, then of 9 to 2 tabs.
CODEGEN_ADDED = {" " * (31 - n): 50257 + n for n in range(30)} | {
    "\t" * (9 - n): 50287 + n for n in range(8)
}


@cache
def smollm2_tokenizer() -> Tokenizer:
    return tokenizer_from_gguf(smollm2_metadata())


@cache
def codegen_tokenizer() -> Tokenizer:
    """From a folder as CodeGen's was first published: vocab.json, merges.txt, added_tokens.json."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        gpt2_tokenizer().save(folder)
        (folder / "tokenizer.json").unlink()
        (folder / "added_tokens.json").write_text(json.dumps(CODEGEN_ADDED))
        # Its config.json gives bos 1, which is the quotation mark.
        (folder / "config.json").write_text('{"bos_token_id": 1, "eos_token_id": 50256}')
        return load_tokenizer(folder)


def small_document() -> dict[str, Any]:
    """A whole tokenizer.json: the 256 bytes, " t", "he", " the" and `<|endoftext|>` (259)."""
    merges = [["Ġ", "t"], ["h", "e"], ["Ġt", "he"]]
    tokens = [*BYTE_CHARACTERS, *("".join(merge) for merge in merges)]
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    return {
        "version": "1.0",
        "added_tokens": [{"id": 259, "content": "<|endoftext|>", "special": True}],
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": merges,
        },
    }
