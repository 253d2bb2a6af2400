"""Small JSON documents from strangers: bounded in size, without duplicate keys."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from bluejay.checkpoints.mapped_file import MappedFile
from bluejay.checkpoints.refusal import quoted, refusal

MAX_JSON_BYTES = 16 * 2**20
"""An index of 100,000 tensors with names of 100 characters takes 14 MB."""


def read_json_object(path: Path, *, max_bytes: int = MAX_JSON_BYTES) -> dict[str, Any]:
    """The object in a JSON file, refused if it is larger than `max_bytes` or repeats a key."""
    file = MappedFile(path)
    try:
        if file.size > max_bytes:
            raise refusal(path, f"{file.size:,} bytes of JSON, more than the {max_bytes:,} allowed")
        return parse_json_object(file.raw(0, file.size), path=path)
    finally:
        file.close()


def parse_json_object(text: bytes, *, path: Path) -> dict[str, Any]:
    """The object in `text`, which came from `path`; anything else is a CheckpointError."""
    try:
        document = json.loads(text.decode("utf-8"), object_pairs_hook=_unique_keys)
    except _DuplicateKeyError as error:
        raise refusal(path, f"the key {quoted(error.key)} appears twice in its JSON") from error
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)[:120]
        raise refusal(path, f"its JSON cannot be read ({reason})") from error
    if not isinstance(document, dict):
        raise refusal(path, f"a JSON object is expected, not {type(document).__name__}")
    return document


class _DuplicateKeyError(Exception):
    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        counts = Counter(key for key, _ in pairs)
        raise _DuplicateKeyError(next(key for key, count in counts.items() if count > 1))
    return unique
