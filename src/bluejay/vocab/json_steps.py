"""Walks the text steps of a `tokenizer.json`."""

from collections.abc import Iterator
from typing import Any


def steps(part: object) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or post-processor, sequences opened."""
    if isinstance(part, dict) and part.get("type") == "Sequence":
        inner = next((v for v in part.values() if isinstance(v, list)), [])
        for step in inner:
            yield from steps(step)
    elif isinstance(part, dict):
        yield part
