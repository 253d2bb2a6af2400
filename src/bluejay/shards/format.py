"""The token-shard format: plain files of token ids and a manifest that seals them.

tokens-00000.bin    ids, little-endian uint16, or uint32 for vocabularies of more than 65,536
weights-00000.bin   one little-endian float32 a token; only if the manifest says so
MANIFEST.json       format version, counts, identity of the tokenizer, size and sha256 of each
                    file, where the text came from; written last
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from bluejay.core.errors import DataError, UsageError

FORMAT = "bluejay-shards"
FORMAT_VERSION = 1
MANIFEST = "MANIFEST.json"
MAX_MANIFEST_BYTES = 64 * 2**20
"""200,000 files of 300 bytes each: with 2**24 tokens a file, 3 trillion tokens."""

WEIGHTS_DTYPE = np.dtype("<f4")
_LARGEST_SMALL_VOCABULARY = 1 << 16
_LARGEST_VOCABULARY = 1 << 31  # ids are read as int32
_DTYPES: dict[str, np.dtype[Any]] = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
_SHA256 = re.compile(r"[0-9a-f]{64}")

DtypeName = Literal["uint16", "uint32"]


@dataclass(frozen=True, kw_only=True)
class ShardFile:
    """One file of ids, and the sum of the file of weights beside it (None if there is none)."""

    name: str
    num_tokens: int
    bytes: int
    sha256: str
    weights_sha256: str | None = None

    @property
    def weights_name(self) -> str:
        """The file of weights that belongs to this one."""
        return self.name.replace("tokens-", "weights-")


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is in a folder of shards. `num_text_bytes` is UTF-8 bytes of the text behind the ids;
    with a `row_length`, tokens come in rows of that many and a document is whole rows."""

    dtype: DtypeName
    tokenizer_sha256: str
    vocab_size: int
    row_length: int | None
    has_weights: bool
    num_tokens: int
    num_documents: int
    num_text_bytes: int
    provenance: Mapping[str, Any]
    files: tuple[ShardFile, ...]

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """Of the ids as stored."""
        return _DTYPES[self.dtype]


def token_file_name(number: int) -> str:
    """The name of the file of ids with that number."""
    return f"tokens-{number:05d}.bin"


def dtype_for(vocab_size: int) -> DtypeName:
    """The smallest stored type that holds every id below `vocab_size`."""
    if not 1 <= vocab_size <= _LARGEST_VOCABULARY:
        raise UsageError(
            f"a vocabulary of {vocab_size} cannot be stored in shards: it must have 1 to "
            f"{_LARGEST_VOCABULARY:,} ids"
        )
    return "uint16" if vocab_size <= _LARGEST_SMALL_VOCABULARY else "uint32"


def manifest_text(manifest: Manifest) -> str:
    """The content of MANIFEST.json; the same manifest always gives the same bytes."""
    document: dict[str, Any] = {"format": FORMAT, "format_version": FORMAT_VERSION}
    document |= {field.name: getattr(manifest, field.name) for field in fields(Manifest)}
    document["files"] = [_file_entry(file) for file in manifest.files]
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def parse_manifest(text: bytes, *, folder: Path) -> Manifest:
    """The manifest of `folder` from its bytes, every field checked; DataError otherwise."""
    try:
        document = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise shards_error(folder, f"its {MANIFEST} is no JSON: make the shards again") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise shards_error(folder, f"its {MANIFEST} is not one of token shards: give their folder")
    version = document.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise shards_error(
            folder,
            f"its format version is {str(version)[:20]!r}, and only {FORMAT_VERSION} can be read: "
            "update Bluejay or make the shards again",
        )
    return _checked(document, folder)


def shards_error(folder: Path, reason: str) -> DataError:
    """The error for a folder of shards, on one line whatever its files say."""
    text = f"{folder}: {reason}"
    return DataError(
        "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    )


def _file_entry(file: ShardFile) -> dict[str, Any]:
    entry = {field.name: getattr(file, field.name) for field in fields(ShardFile)}
    return {key: value for key, value in entry.items() if value is not None}


def _checked(document: dict[str, Any], folder: Path) -> Manifest:
    for key, is_right in _CHECKS.items():
        if not is_right(document.get(key)):
            raise _wrong(document, key, folder)
    if document["dtype"] != dtype_for(document["vocab_size"]):
        raise _wrong(document, "dtype", folder)
    width, needs_weights = _DTYPES[document["dtype"]].itemsize, document["has_weights"]
    for number, entry in enumerate(document["files"]):
        if not _is_file(entry, number, width=width, needs_weights=needs_weights):
            raise _wrong(document, "files", folder)
    files = tuple(_shard_file(entry) for entry in document["files"])
    if sum(file.num_tokens for file in files) != document["num_tokens"]:
        raise _wrong(document, "num_tokens", folder)
    row_length = document["row_length"] or 1
    if any(file.num_tokens % row_length for file in files):
        raise _wrong(document, "row_length", folder)
    known = {field.name: document[field.name] for field in fields(Manifest)}
    return Manifest(**known | {"files": files})


def _wrong(document: dict[str, Any], key: str, folder: Path) -> DataError:
    shown = repr(document.get(key))[:60] if key in document else "missing"
    return shards_error(folder, f"{key} in its {MANIFEST} is {shown}: make the shards again")


def _is_file(entry: Any, number: int, *, width: int, needs_weights: bool) -> bool:
    """Whether an entry of `files` names the file of that number with a size and sums."""
    return (
        isinstance(entry, dict)
        and entry.get("name") == token_file_name(number)
        and _is_count(entry.get("num_tokens"))
        and _is_count(entry.get("bytes"))
        and 0 < entry["num_tokens"] * width == entry["bytes"]
        and _is_sha256(entry.get("sha256"))
        and _is_sha256(entry.get("weights_sha256")) == needs_weights
    )


def _shard_file(entry: dict[str, Any]) -> ShardFile:
    return ShardFile(
        name=entry["name"],
        num_tokens=entry["num_tokens"],
        bytes=entry["bytes"],
        sha256=entry["sha256"],
        weights_sha256=entry.get("weights_sha256"),
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_sha256(value: object) -> bool:
    return isinstance(value, str) and _SHA256.fullmatch(value) is not None


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "vocab_size": lambda value: _is_count(value) and 1 <= value <= _LARGEST_VOCABULARY,
    "dtype": lambda value: isinstance(value, str),
    "row_length": lambda value: value is None or (_is_count(value) and value >= 1),
    "has_weights": lambda value: isinstance(value, bool),
    "num_tokens": _is_count,
    "num_documents": _is_count,
    "num_text_bytes": _is_count,
    "tokenizer_sha256": _is_sha256,
    "provenance": lambda value: isinstance(value, dict),
    "files": lambda value: isinstance(value, list),
}
