"""Reads a tokenizer from a Hugging Face folder or a `tokenizer.json`."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bluejay.core.errors import CheckpointError
from bluejay.vocab.json_steps import steps
from bluejay.vocab.quoting import one_line, quoted
from bluejay.vocab.roles import END_OF_TEXT, SpecialRoles, assign_roles
from bluejay.vocab.tokenizer import Tokenizer
from bluejay.vocab.tokenizer_json import build_backend

MAX_FILE_BYTES = 64 * 2**20
"""The largest tokenizer.json in use (262,144 tokens, indented) is 33 MB."""

# These split text as GPT-2 does; others that ship vocab.json and merges.txt (Qwen2) do not.
_GPT2_CLASSES = frozenset(
    ["GPT2Tokenizer", "GPT2TokenizerFast", "CodeGenTokenizer", "CodeGenTokenizerFast", None]
)
_CONFIG_FILES = ("tokenizer_config", "special_tokens_map", "generation_config", "config")


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of a folder or a `tokenizer.json`, with the roles its files name.

    Reads `tokenizer.json`, or `vocab.json` with `merges.txt` (and `added_tokens.json`). Roles come
    from the names in `tokenizer_config.json` and `special_tokens_map.json`, else from the ids in
    `generation_config.json` and `config.json` (CodeGen's `config.json` has a wrong bos).
    Raises CheckpointError for what is missing, damaged or no byte-level BPE.
    """
    folder = path if path.is_dir() else path.parent
    configs = {name: _optional_object(folder / f"{name}.json") for name in _CONFIG_FILES}
    file = path / "tokenizer.json" if path.is_dir() else path
    if file.exists():
        document = _read_object(file)
    elif (folder / "vocab.json").exists() and (folder / "merges.txt").exists():
        file = folder / "vocab.json"
        document = _document_of_parts(folder, configs)
    else:
        raise CheckpointError(
            one_line(
                f"{path} has no tokenizer.json, nor vocab.json with merges.txt: copy them from the"
                " model's own folder"
            )
        )
    backend = build_backend(document, where=str(file))
    return Tokenizer(backend, roles=_roles(document, configs, backend.token_to_id, str(folder)))


def _document_of_parts(folder: Path, configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    config = configs["tokenizer_config"]
    class_name = config.get("tokenizer_class")
    if class_name not in _GPT2_CLASSES:
        raise CheckpointError(
            f"{folder}: how {quoted(class_name)} splits text is not in vocab.json and merges.txt:"
            " save the tokenizer with transformers, which writes a tokenizer.json"
        )
    vocab = _read_object(folder / "vocab.json")
    added = {END_OF_TEXT: vocab[END_OF_TEXT]} if END_OF_TEXT in vocab else {}
    special = {name for name in _named_tokens(configs).values() if name in vocab} | {*added}
    added |= {name: vocab[name] for name in special}
    added |= _optional_object(folder / "added_tokens.json")
    lines = _read_bytes(folder / "merges.txt").decode("utf-8", errors="replace").split("\n")
    # Only the first line is a comment: "# #" further down is a merge.
    first = 1 if lines[0].startswith("#version") else 0
    merges: list[object] = [line.rstrip("\r") for line in lines[first:] if line.strip()]
    return {
        "added_tokens": [
            {"id": token_id, "content": name, "special": name in special}
            for name, token_id in added.items()
        ],
        "pre_tokenizer": {
            "type": "ByteLevel",
            "add_prefix_space": config.get("add_prefix_space") is True,
            "trim_offsets": False,
            "use_regex": True,
        },
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def _roles(
    document: dict[str, Any],
    configs: dict[str, dict[str, Any]],
    id_of: Callable[[str], int | None],
    where: str,
) -> SpecialRoles:
    named: dict[str, int | None] = {}
    for role, name in _named_tokens(configs).items():
        named[role] = id_of(name)
        # transformers would add such a token with a new id, for which no model has a row.
        if named[role] is None and role in ("bos", "eos"):
            raise CheckpointError(
                f"{where}: its {role}_token {quoted(name)} is no token of its tokenizer: correct"
                " tokenizer_config.json"
            )
    stops: list[int] = []
    for file in ("generation_config", "config"):
        for role in ("bos", "eos", "pad"):
            ids = _ids_in(configs[file].get(f"{role}_token_id"))
            if named.get(role) is None and ids:
                named[role] = ids[0]
            if role == "eos" and file == "generation_config":
                stops += ids
    prefix, suffix = _around_text(document, id_of)
    flags = configs["tokenizer_config"]
    bos, eos = named.get("bos"), named.get("eos")
    if not prefix and bos is not None and flags.get("add_bos_token") is True:
        prefix = (bos,)
    if not suffix and eos is not None and flags.get("add_eos_token") is True:
        suffix = (eos,)
    return assign_roles(named, id_of=id_of, stops=stops, prefix=prefix, suffix=suffix)


def _named_tokens(configs: dict[str, dict[str, Any]]) -> dict[str, str]:
    """The token named for each role, the tokenizer's own config first."""
    names: dict[str, str] = {}
    for file in ("tokenizer_config", "special_tokens_map"):
        for role in ("bos", "eos", "pad", "unk"):
            value = configs[file].get(f"{role}_token")
            name = value.get("content") if isinstance(value, dict) else value
            if isinstance(name, str) and name:
                names.setdefault(role, name)
    return names


def _ids_in(value: object) -> list[int]:
    """The ids of a config value: one, a list, or none (-1 and null say so too)."""
    values = value if isinstance(value, list) else [value]
    return [i for i in values if type(i) is int and i != -1]


def _around_text(
    document: dict[str, Any], id_of: Callable[[str], int | None]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the post-processor puts before and after a text."""
    for step in steps(document.get("post_processor")):
        if step.get("type") in ("RobertaProcessing", "BertProcessing"):
            names = [step.get("cls"), step.get("sep")]
            ids = [id_of(n[0]) if isinstance(n, list) and n else None for n in names]
            return _known(ids[:1]), _known(ids[1:])
        pieces = step.get("single")
        if step.get("type") == "TemplateProcessing" and isinstance(pieces, list):
            ids = [_special_in(piece, id_of) for piece in pieces]
            kinds = ["Sequence" in p if isinstance(p, dict) else False for p in pieces]
            middle = kinds.index(True) if True in kinds else len(kinds)
            return _known(ids[:middle]), _known(ids[middle + 1 :])
    return (), ()


def _special_in(piece: object, id_of: Callable[[str], int | None]) -> int | None:
    special = piece.get("SpecialToken") if isinstance(piece, dict) else None
    name = special.get("id") if isinstance(special, dict) else None
    return id_of(name) if isinstance(name, str) else None


def _known(ids: list[int | None]) -> tuple[int, ...]:
    return tuple(i for i in ids if i is not None)


def _optional_object(path: Path) -> dict[str, Any]:
    return _read_object(path) if path.exists() else {}


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(_read_bytes(path).decode("utf-8-sig"), object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]
        raise CheckpointError(one_line(f"{path}: its JSON cannot be read ({reason})")) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: a JSON object is expected, not {type(value).__name__}")
    return value


def _read_bytes(path: Path) -> bytes:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise CheckpointError(f"{path} is not a regular file: copy the real one there")
        if status.st_size > MAX_FILE_BYTES:
            raise CheckpointError(
                f"{path} has {status.st_size:,} bytes, more than the {MAX_FILE_BYTES:,} that a"
                " tokenizer file may have"
            )
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise ValueError(f"the key {quoted(key)} is there twice")
            seen.add(key)
    return unique
