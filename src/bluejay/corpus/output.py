"""The two sides of a corpus as token shards, and the list of the documents in them."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from bluejay.corpus.encoding import encode_documents
from bluejay.corpus.progress import Counted
from bluejay.corpus.report import SplitCounts
from bluejay.corpus.spool import Entry, Spool
from bluejay.shards.writer import ShardWriter
from bluejay.vocab.tokenizer import Tokenizer

Split = Literal["train", "held-out"]
SPLITS: tuple[Split, ...] = ("train", "held-out")

_LISTED = ("title", "authors", "licence", "source", "language")


def write_split(
    folder: Path,
    entries: Sequence[Entry],
    spool: Spool,
    *,
    tokenizer: Tokenizer,
    provenance: Mapping[str, object],
    progress: Counted,
) -> tuple[SplitCounts, list[str]]:
    """Write the shards of one side; its counts, and a line of JSON for each document."""
    counts, lines = SplitCounts(), []

    def texts() -> Iterator[str]:
        for entry in entries:
            text = spool.read(entry)
            counts.characters += len(text)
            yield text

    size = tokenizer.vocab_size
    with ShardWriter(folder, tokenizer_sha256=tokenizer.sha256, vocab_size=size) as writer:
        for entry, ids in zip(entries, encode_documents(tokenizer, texts()), strict=True):
            writer.append(ids, num_text_bytes=entry.num_bytes)
            counts.documents += 1
            counts.num_bytes += entry.num_bytes
            counts.tokens += ids.size
            lines.append(_line(entry, folder.name, ids.size))
            progress.add(entry.num_bytes)
        licences = Counter(entry.metadata.get("licence", "not stated") for entry in entries)
        writer.finish(
            {**provenance, "split": folder.name, "licences": dict(sorted(licences.items()))}
        )
    return counts, lines


def _line(entry: Entry, split: str, num_tokens: int) -> str:
    document: dict[str, str | int] = {"id": entry.id}
    document |= {key: entry.metadata.get(key, "") for key in _LISTED}
    document |= {"split": split, "bytes": entry.num_bytes, "tokens": num_tokens}
    return json.dumps(document, ensure_ascii=False) + "\n"
