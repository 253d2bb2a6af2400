"""Which documents are held out: whole ones, by their ids alone."""

import hashlib
from collections.abc import Sequence

from bluejay.core.errors import UsageError


def held_out_ids(ids: Sequence[str], held_out: float | Sequence[str]) -> frozenset[str]:
    """The ids to hold out: those listed, or about that share of all.

    A document's sha256 decides, so it stays on its side when others come or go. If a share picks
    none or all of at least two documents, the one with the smallest (largest) hash changes sides.
    Raises UsageError for an id that is not there, and for a share outside 0 to 1.
    """
    if isinstance(held_out, str) or not isinstance(held_out, int | float):
        return _listed(frozenset(ids), [held_out] if isinstance(held_out, str) else held_out)
    check_share(held_out)
    ranked = sorted(set(ids), key=_fraction)
    if held_out == 0 or len(ranked) < 2:
        return frozenset()
    count = sum(_fraction(document_id) < held_out for document_id in ranked)
    return frozenset(ranked[: min(max(count, 1), len(ranked) - 1)])


def parted(text: str, share: float) -> tuple[str, str]:
    """A text in two, the first about that share of it: between paragraphs, lines or words."""
    place = int(len(text) * share)
    for border in ("\n\n", "\n", " "):
        cut = text.rfind(border, 0, place)
        if cut > place // 2:
            return text[:cut].rstrip(), text[cut:].lstrip()
    return text, ""


def check_share(share: float) -> None:
    """Raise UsageError for a share that is not from 0 to less than 1."""
    if not 0 <= share < 1:
        raise UsageError(f"a share of {share} cannot be held out: give 0 or more, less than 1")


def _listed(ids: frozenset[str], wanted: Sequence[str]) -> frozenset[str]:
    missing = [document_id for document_id in wanted if document_id not in ids]
    if missing:
        raise UsageError(
            f"there is no document {missing[0][:80]!r} to hold out: documents.jsonl of a run "
            "without it lists the ids"
        )
    return frozenset(wanted)


def _fraction(document_id: str) -> float:
    """The id as an evenly spread number from 0 to 1."""
    digest = hashlib.sha256(document_id.encode()).digest()
    return int.from_bytes(digest[:7]) / (1 << 56)
