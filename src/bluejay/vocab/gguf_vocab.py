"""The tokenizer inside a GGUF file.

The file names its way of splitting text (`tokenizer.ggml.pre`) and does not contain it. What the
names mean is taken from llama.cpp (`llama-vocab.cpp`) and the models' own tokenizer.json; other
names are refused, because ids that are nearly right give answers that are nearly right.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from bluejay.core.errors import CheckpointError
from bluejay.vocab.quoting import one_line, quoted
from bluejay.vocab.roles import assign_roles
from bluejay.vocab.tokenizer import Tokenizer
from bluejay.vocab.tokenizer_json import build_backend

_GGUF = "the GGUF file's tokenizer"
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED, _UNUSED = 1, 2, 3, 4, 5

_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
_GPT2: dict[str, Any] = {**_BYTES, "use_regex": True}
_SINGLE_DIGITS: dict[str, Any] = {
    "type": "Sequence",
    "pretokenizers": [{"type": "Digits", "individual_digits": True}, _GPT2],
}
_LLAMA3: dict[str, Any] = {
    "type": "Sequence",
    "pretokenizers": [
        {
            "type": "Split",
            "pattern": {
                "Regex": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
                r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
            },
            "behavior": "Isolated",
            "invert": False,
        },
        {**_BYTES, "use_regex": False},
    ],
}
_SPLITS = {
    "gpt-2": _GPT2,
    "phi-2": _GPT2,
    "mpt": _GPT2,
    "olmo": _GPT2,
    "smollm": _SINGLE_DIGITS,
    "starcoder": _SINGLE_DIGITS,
    "refact": _SINGLE_DIGITS,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
}
# The NeoX tokenizer, which these models share, composes characters first.
_COMPOSING = frozenset(["mpt", "olmo"])
_IGNORING_MERGES = frozenset(["llama-bpe", "llama3", "llama-v3"])
# Files from before `pre` existed (April 2024) do not say, but all models of these kinds agree.
_BY_ARCHITECTURE = {"gpt2": "gpt-2", "gptj": "gpt-2", "codegen": "gpt-2", "gptneox": "olmo"}


def tokenizer_from_gguf(metadata: Mapping[str, Any]) -> Tokenizer:
    """The byte-level tokenizer that a GGUF file's `tokenizer.ggml.*` entries describe.

    Chat templates are ignored. Raises CheckpointError for other kinds of tokenizer and for
    metadata that contradicts itself.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise CheckpointError(
            f"{_GGUF} is {quoted(kind)}, and only byte-level BPE ('gpt2') is read: use a model with"
            " such a tokenizer, or its Hugging Face folder"
        )
    pre = _splitting(metadata)
    names, types = _tokens(metadata)
    document = {
        "added_tokens": [
            {"id": i, "content": name, "special": types[i] != _USER_DEFINED}
            for i, name in enumerate(names)
            if types[i] in (_UNKNOWN, _CONTROL, _USER_DEFINED)
        ],
        "normalizer": {"type": "NFC"} if pre in _COMPOSING else None,
        "pre_tokenizer": _SPLITS[pre],
        "model": {
            "type": "BPE",
            "vocab": {n: i for i, n in enumerate(names) if types[i] != _UNUSED},
            "merges": _list(metadata, "tokenizer.ggml.merges"),
            "ignore_merges": pre in _IGNORING_MERGES,
        },
    }
    backend = build_backend(document, where=_GGUF)
    ids = {role: _id(metadata, key, len(names)) for role, key in _ROLE_KEYS.items()}
    bos, eos = ids["bos"], ids["eos"]
    add_bos = metadata.get("tokenizer.ggml.add_bos_token", pre in _IGNORING_MERGES) is True
    add_eos = metadata.get("tokenizer.ggml.add_eos_token", False) is True
    turn_ends = [_id(metadata, key, len(names)) for key in ("eot_token_id", "eom_token_id")]
    roles = assign_roles(
        ids,
        id_of=backend.token_to_id,
        stops=[i for i in turn_ends if i is not None],
        prefix=(bos,) if add_bos and bos is not None else (),
        suffix=(eos,) if add_eos and eos is not None else (),
    )
    return Tokenizer(backend, roles=roles)


_ROLE_KEYS = {
    "bos": "bos_token_id",
    "eos": "eos_token_id",
    "pad": "padding_token_id",
    "unk": "unknown_token_id",
}


def _splitting(metadata: Mapping[str, Any]) -> str:
    """The name in `_SPLITS` of the way this file's text is split."""
    pre = metadata.get("tokenizer.ggml.pre")
    architecture = metadata.get("general.architecture")
    if pre in (None, "default") and isinstance(architecture, str):
        pre = _BY_ARCHITECTURE.get(architecture, pre)
    if not isinstance(pre, str) or pre not in _SPLITS:
        raise CheckpointError(
            f"{_GGUF} splits text by {quoted(pre)}, which is not known here"
            f" ({', '.join(sorted(_SPLITS))} are): use the model's Hugging Face folder"
        )
    return pre


def _tokens(metadata: Mapping[str, Any]) -> tuple[list[str], list[int]]:
    names = _list(metadata, "tokenizer.ggml.tokens")
    types = _list(metadata, "tokenizer.ggml.token_type", default=[_NORMAL] * len(names))
    if len(types) != len(names):
        raise CheckpointError(f"{_GGUF} has {len(names)} tokens and {len(types)} token types")
    first_id: dict[str, int] = {}
    for token_id, name in enumerate(names):
        if not isinstance(name, str):
            raise CheckpointError(f"{_GGUF} has {quoted(name)} as token {token_id}, not text")
        if first_id.setdefault(name, token_id) != token_id:
            raise CheckpointError(
                one_line(f"{_GGUF} has {quoted(name)} as token {first_id[name]} and {token_id}")
            )
    return names, types


def _list(metadata: Mapping[str, Any], key: str, *, default: list[Any] | None = None) -> list[Any]:
    value = metadata.get(key, default)
    if isinstance(value, np.ndarray) and value.ndim == 1:
        value = value.tolist()
    if not isinstance(value, list | tuple):
        raise CheckpointError(f"{_GGUF} has no list {key}: convert the file again")
    return list(value)


def _id(metadata: Mapping[str, Any], key: str, num_tokens: int) -> int | None:
    value = metadata.get(f"tokenizer.ggml.{key}")
    if value is None:
        return None
    if isinstance(value, np.integer):
        value = int(value)
    if type(value) is not int or not 0 <= value < num_tokens:
        raise CheckpointError(
            f"{_GGUF} has {quoted(value)} as {key}, outside its {num_tokens} tokens"
        )
    return value
