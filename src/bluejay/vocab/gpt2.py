"""The tokenizers of GPT-2 and GPT-J, which come with the package."""

from functools import cache
from importlib import resources

import tokenizers

from bluejay.vocab.roles import END_OF_TEXT, assign_roles
from bluejay.vocab.tokenizer import Tokenizer

GPTJ_ROWS = 50400
"""GPT-J's vocabulary rows: GPT-2's 50,257 tokens padded so that 8 devices share them evenly."""


@cache
def gpt2_tokenizer() -> Tokenizer:
    """GPT-2's 50,257 tokens; 50256 `<|endoftext|>` starts, ends and separates documents."""
    return _with_roles(_gpt2_backend())


@cache
def gptj_tokenizer() -> Tokenizer:
    """GPT-2's tokens and `<|extratoken_1|>` … `<|extratoken_143|>`, the names of GPT-J's padding.

    Text and ids are as GPT-2's; the padding rows have names and are never sampled.
    """
    backend = _gpt2_backend()
    num_padding = GPTJ_ROWS - backend.get_vocab_size()
    backend.add_special_tokens(
        [
            tokenizers.AddedToken(f"<|extratoken_{n}|>", special=True, normalized=False)
            for n in range(1, num_padding + 1)
        ]
    )
    return _with_roles(backend)


def _gpt2_backend() -> tokenizers.Tokenizer:
    file = resources.files("bluejay.vocab") / "data" / "gpt2" / "tokenizer.json"
    return tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))


def _with_roles(backend: tokenizers.Tokenizer) -> Tokenizer:
    end = backend.token_to_id(END_OF_TEXT)
    # No padding id: GPT-2 and GPT-J have none.
    roles = assign_roles({"bos": end, "eos": end, "unk": end}, id_of=backend.token_to_id)
    return Tokenizer(backend, roles=roles)
