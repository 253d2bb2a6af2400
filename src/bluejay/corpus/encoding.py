"""Documents to ids, with memory for a few megabytes of text at a time."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluejay.core.errors import UsageError
from bluejay.vocab.tokenizer import Tokenizer

_PIECE_CHARACTERS = 1 << 17
_BATCH_CHARACTERS = 1 << 22
"""A character takes about 50 bytes while it is encoded: 200 MB a batch."""


def document_start(tokenizer: Tokenizer) -> int:
    """The id that stands before each document. Raises UsageError if the tokenizer has none."""
    start = tokenizer.document_start_id
    start = tokenizer.eos_id if start is None else start
    if start is None:
        raise UsageError(
            "the tokenizer has no end-of-text token, which separates documents: take one that has"
        )
    return start


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[NDArray[np.int32]]:
    """For each text int32 [1 + tokens]: the start id, then the ids of `tokenizer.encode(text)`."""
    start = np.array([document_start(tokenizer)], np.int32)
    parts = [start]
    for batch in _batches(_pieces(texts, may_cut=splits_at_line_ends(tokenizer))):
        encoded = tokenizer.encode_batch([piece for piece, _ in batch])
        for (_, is_last), ids in zip(batch, encoded, strict=True):
            parts.append(np.array(ids, np.int32))
            if is_last:
                yield np.concatenate(parts)
                parts = [start]


def cut(text: str) -> Iterator[str]:
    """Pieces of at least 131,072 characters, cut between a paragraph and the line ends after it."""
    begin = 0
    while (end := _next_border(text, begin + _PIECE_CHARACTERS)) is not None:
        yield text[begin:end]
        begin = end
    yield text[begin:]


def splits_at_line_ends(tokenizer: Tokenizer) -> bool:
    """Whether no token can span the end of a word and a line end after it.

    So for tokenizers that split as GPT-2's: of its patterns, those with letters, digits or signs
    have no line end in them. Others (Llama 3's joins signs and line ends) are not known to.
    """
    document = tokenizer.document()
    added = [token for token in document["added_tokens"] if not token["special"]]
    return document["normalizer"] is None and not added and _is_gpt2s(document["pre_tokenizer"])


def _is_gpt2s(step: Any) -> bool:
    if not isinstance(step, dict):
        return False
    if step.get("type") == "Sequence":
        *others, last = step["pretokenizers"]
        return all(other.get("type") == "Digits" for other in others) and _is_gpt2s(last)
    is_byte_level = step.get("type") == "ByteLevel"
    return is_byte_level and step.get("use_regex", True) and not step.get("add_prefix_space", True)


def _next_border(text: str, least: int) -> int | None:
    found = text.find("\n\n", least)
    while found > 0 and text[found - 1].isspace():
        found = text.find("\n\n", found + 1)
    return found if found > 0 else None


def _pieces(texts: Iterable[str], *, may_cut: bool) -> Iterator[tuple[str, bool]]:
    """Pieces of all the texts; True with the last one of each."""
    for text in texts:
        before: str | None = None
        for piece in cut(text) if may_cut else [text]:
            if before is not None:
                yield before, False
            before = piece
        yield before or "", True


def _batches(pieces: Iterable[tuple[str, bool]]) -> Iterator[list[tuple[str, bool]]]:
    batch: list[tuple[str, bool]] = []
    size = 0
    for piece, is_last in pieces:
        batch.append((piece, is_last))
        size += len(piece)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
