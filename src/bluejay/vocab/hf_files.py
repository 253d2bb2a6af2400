"""The tokenizer files of a Hugging Face folder, as `transformers` reads them."""

import json
from pathlib import Path
from typing import Any

from bluejay.core.errors import DiskError
from bluejay.vocab.json_steps import steps
from bluejay.vocab.roles import SpecialRoles

_GPT2_PRE_TOKENIZER = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}


def write_tokenizer_files(folder: Path, *, document: dict[str, Any], roles: SpecialRoles) -> None:
    """Write tokenizer.json, its config files, and vocab.json with merges.txt into `folder`."""
    names = _names_by_id(document)
    contents = {
        "tokenizer.json": _compact(document | {"post_processor": _post_processor(roles, names)}),
        "tokenizer_config.json": _readable(_tokenizer_config(document, roles, names)),
        "special_tokens_map.json": _readable(_named_roles(roles, names)),
        "vocab.json": _compact(document["model"]["vocab"]),
        "merges.txt": _merges_text(document["model"]["merges"]),
    }
    vocab = document["model"]["vocab"]
    added = {t["content"]: t["id"] for t in document["added_tokens"] if t["content"] not in vocab}
    if added:
        contents["added_tokens.json"] = _compact(added)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in contents.items():
            (folder / name).write_text(content, encoding="utf-8", newline="\n")
    except OSError as error:
        raise DiskError(
            f"cannot write the tokenizer to {folder}: {error.strerror}; choose another folder"
        ) from error


def _names_by_id(document: dict[str, Any]) -> dict[int, str]:
    names = {token_id: name for name, token_id in document["model"]["vocab"].items()}
    return names | {token["id"]: token["content"] for token in document["added_tokens"]}


def _named_roles(roles: SpecialRoles, names: dict[int, str]) -> dict[str, str]:
    ids = {"bos": roles.bos, "eos": roles.eos, "unk": roles.unk, "pad": roles.pad}
    return {f"{role}_token": names[i] for role, i in ids.items() if i is not None}


def _tokenizer_config(
    document: dict[str, Any], roles: SpecialRoles, names: dict[int, str]
) -> dict[str, Any]:
    # `GPT2Tokenizer` puts its own splitting in place of the file's, so it is only named where the
    # two are the same.
    pre_tokenizer = dict(document["pre_tokenizer"])
    pre_tokenizer.pop("trim_offsets", None)
    plain = (
        pre_tokenizer == _GPT2_PRE_TOKENIZER
        and document["normalizer"] is None
        and not document["model"].get("ignore_merges")
        and not (roles.prefix or roles.suffix)
    )
    keys = ("content", "lstrip", "normalized", "rstrip", "single_word", "special")
    return {
        "add_prefix_space": any(
            step.get("add_prefix_space") is True for step in steps(document["pre_tokenizer"])
        ),
        "added_tokens_decoder": {
            str(token["id"]): {key: token[key] for key in keys}
            for token in document["added_tokens"]
        },
        **_named_roles(roles, names),
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "GPT2Tokenizer" if plain else "PreTrainedTokenizerFast",
    }


def _post_processor(roles: SpecialRoles, names: dict[int, str]) -> dict[str, Any]:
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": False,
        "use_regex": True,
    }
    if not (roles.prefix or roles.suffix):
        return byte_level

    def specials(ids: tuple[int, ...], type_id: int) -> list[dict[str, Any]]:
        return [{"SpecialToken": {"id": names[i], "type_id": type_id}} for i in ids]

    def around(name: str, type_id: int) -> list[dict[str, Any]]:
        sequence = {"Sequence": {"id": name, "type_id": type_id}}
        return [*specials(roles.prefix, type_id), sequence, *specials(roles.suffix, type_id)]

    template = {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            names[i]: {"id": names[i], "ids": [i], "tokens": [names[i]]}
            for i in (*roles.prefix, *roles.suffix)
        },
    }
    return {"type": "Sequence", "processors": [byte_level, template]}


def _merges_text(merges: list[list[str]]) -> str:
    return "".join(["#version: 0.2\n", *(f"{left} {right}\n" for left, right in merges)])


def _compact(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _readable(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=2) + "\n"
