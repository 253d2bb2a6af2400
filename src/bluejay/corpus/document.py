"""The document: what sources become, and what everything in the corpus works on."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text with an identity that is the same in every run, on every machine.

    `metadata` has what the source knows: source, licence, title, authors, language.
    """

    text: str
    id: str
    metadata: Mapping[str, str] = field(default_factory=dict)


class RejectedError(Exception):
    """A source that gives no document; the text is the reason, counted with others like it."""
