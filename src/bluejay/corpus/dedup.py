"""Paragraphs that were there before: across documents, and between held-out and training text."""

import hashlib
from collections import Counter
from collections.abc import Mapping

from bluejay.corpus.cleaning import paragraphs

MIN_CHARACTERS = 80
"""Shorter paragraphs ("Yes," said he.) are the same in many books without being copies."""


_SIGNS = bytes(byte for byte in range(128) if not chr(byte).isalnum())


class ParagraphIndex:
    """The long paragraphs of some documents, by a hash of their letters and digits.

    Eight bytes a paragraph: among a billion of them the chance of any collision is 3 %.
    """

    def __init__(self) -> None:
        self._owners: dict[int, str] = {}

    def add(self, document_id: str, key: int) -> None:
        """Remember the paragraph, unless an earlier document has it."""
        self._owners.setdefault(key, document_id)

    def has_from_another(self, document_id: str, key: int) -> bool:
        """Whether another document has this paragraph; a text may repeat itself, as songs do."""
        return self._owners.get(key, document_id) != document_id


def paragraph_key(paragraph: str) -> int | None:
    """The hash of a paragraph in lower case without ASCII signs and spaces; None if it is short."""
    if len(paragraph) < MIN_CHARACTERS:
        return None
    letters = paragraph.lower().encode().translate(None, _SIGNS)
    return int.from_bytes(hashlib.blake2b(letters, digest_size=8).digest())


def without_repeats(
    document_id: str, text: str, indexes: Mapping[str, ParagraphIndex], own: ParagraphIndex
) -> tuple[str, Counter[str]]:
    """The text less the paragraphs that an index has from another document, counted by the
    name of the first such index; what stays is added to `own`."""
    kept: list[str] = []
    dropped: Counter[str] = Counter()
    for paragraph in paragraphs(text):
        key = paragraph_key(paragraph)
        found = "" if key is None else _found_in(indexes, document_id, key)
        if found:
            dropped[found] += 1
            continue
        kept.append(paragraph)
        if key is not None:
            own.add(document_id, key)
    return "\n\n".join(kept), dropped


def _found_in(indexes: Mapping[str, ParagraphIndex], document_id: str, key: int) -> str:
    for name, index in indexes.items():
        if index.has_from_another(document_id, key):
            return name
    return ""
