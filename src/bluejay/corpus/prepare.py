"""Sources to a folder that a model can be trained on.

tokenizer/        the vocabulary, as Hugging Face names its files
train/            token shards of the training documents
held-out/         token shards of the documents that training never sees
documents.jsonl   a line for each document: where it came from, on which side it is, its size
REPORT.json       what was read, kept and dropped, by reason
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bluejay.core.errors import DataError, UsageError
from bluejay.core.files import new_folder, write_text_durably
from bluejay.corpus.archives import source_bytes
from bluejay.corpus.cleaning import cleaned
from bluejay.corpus.dedup import ParagraphIndex, without_repeats
from bluejay.corpus.document import Document, RejectedError
from bluejay.corpus.encoding import document_start
from bluejay.corpus.ordering import ORDERS, Order, difficulty
from bluejay.corpus.output import SPLITS, Split, write_split
from bluejay.corpus.progress import Counted, OnProgress
from bluejay.corpus.reading import read_documents
from bluejay.corpus.report import PrepareReport
from bluejay.corpus.splitting import check_share, held_out_ids, parted
from bluejay.corpus.spool import Entry, Spool
from bluejay.corpus.tokenizer_training import spread_sample, train_tokenizer
from bluejay.vocab.tokenizer import Tokenizer

_SMALLEST_VOCABULARY, _LARGEST_VOCABULARY = 257, 1 << 20


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """`tokenizer` is used instead of one trained here; `held_out` is a share or a list of ids;
    `language`, such as "en", drops documents whose metadata names another."""

    vocab_size: int = 4096
    tokenizer: Tokenizer | None = None
    held_out: float | Sequence[str] = 0.03
    order: Order = "given"
    text_field: str = "text"
    language: str | None = None
    min_characters: int = 200

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise UsageError(f"there is no order {self.order!r}: take {' or '.join(ORDERS)}")
        if isinstance(self.held_out, int | float):
            check_share(self.held_out)
        if self.tokenizer is not None:
            document_start(self.tokenizer)
        elif not _SMALLEST_VOCABULARY <= self.vocab_size <= _LARGEST_VOCABULARY:
            raise UsageError(
                f"a vocabulary of {self.vocab_size} cannot be trained: ask for "
                f"{_SMALLEST_VOCABULARY} (the bytes and the end of a text) to "
                f"{_LARGEST_VOCABULARY:,}"
            )


def prepare(
    sources: Sequence[Path],
    out: Path,
    *,
    options: PrepareOptions | None = None,
    on_progress: OnProgress = lambda _phase, _done, _total: None,
) -> PrepareReport:
    """Read, clean, split, deduplicate and encode; `out` appears whole or not at all.

    The same sources and options give the same bytes. Raises UsageError for what is not there or
    no place to write to, DataError for damaged sources and when no text is left, DiskError.
    """
    if not sources:
        raise UsageError("there is nothing to prepare: give files, folders or archives")
    job = _Job(options or PrepareOptions(), on_progress)
    with new_folder(out) as folder:
        with Spool(folder / ".read") as raw, Spool(folder / ".kept") as kept:
            entries = job.read(sources, raw)
            job.write(job.compare(entries, raw, kept), kept, folder)
        report = json.dumps(job.report.to_json(), indent=2, ensure_ascii=False) + "\n"
        write_text_durably(folder / "REPORT.json", report)
    return job.report


class _Job:
    """The phases of one preparation, and the counts they add to."""

    def __init__(self, options: PrepareOptions, on_progress: OnProgress) -> None:
        self._options = options
        self._on_progress = on_progress
        self.report = PrepareReport()
        self._end_id: str | None = None
        held_out = options.held_out
        self._provenance: dict[str, object] = {
            "order": options.order,
            "held_out": held_out if isinstance(held_out, float | int) else list(held_out),
            "documents": "../documents.jsonl",
        }

    def read(self, sources: Sequence[Path], spool: Spool) -> list[Entry]:
        """The documents that are long enough and in the right language, cleaned, by id."""
        # Names, not places: where the files lay on this machine is nobody's business.
        self._provenance["sources"] = [source.resolve().name for source in sources]
        progress = Counted(self._on_progress, "read", sum(map(source_bytes, sources)))
        entries: dict[str, Entry] = {}
        for document in read_documents(
            sources, text_field=self._options.text_field, on_bytes=progress.add
        ):
            if isinstance(document, RejectedError):
                self.report.unreadable[str(document)] += 1
                continue
            self.report.documents_read += 1
            text = cleaned(document.text)
            objection = self._objection(document, text)
            if document.id in entries:
                objection = "the same id as an earlier document"
            if objection:
                self.report.documents_dropped[objection] += 1
                continue
            entries[document.id] = spool.add(
                text,
                document_id=document.id,
                metadata=document.metadata,
                difficulty=difficulty(text),
            )
        found = list(entries.values())
        return self._with_end_apart(found[0], spool) if len(found) == 1 else found

    def _with_end_apart(self, entry: Entry, spool: Spool) -> list[Entry]:
        """An only document and its end, which is held out in place of a whole one."""
        share = self._options.held_out
        if not isinstance(share, int | float) or not share:
            return [entry]
        check_share(share)
        beginning, end = parted(spool.read(entry), 1.0 - share)
        if min(len(beginning), len(end)) < self._options.min_characters:
            return [entry]
        self._end_id = f"{entry.id} (end)"
        self.report.notes.append("There is one document: its end is held out.")
        return [
            spool.add(text, document_id=name, metadata=entry.metadata, difficulty=entry.difficulty)
            for name, text in ((entry.id, beginning), (self._end_id, end))
        ]

    def compare(self, entries: list[Entry], raw: Spool, kept: Spool) -> dict[Split, list[Entry]]:
        """Both sides in their order, less the paragraphs that the other or an earlier one has."""
        sides = self._sides(entries)
        held, seen = ParagraphIndex(), ParagraphIndex()
        progress = Counted(self._on_progress, "compare", sum(e.num_bytes for e in entries))
        indexes: dict[Split, dict[str, ParagraphIndex]] = {
            "held-out": {"in another document": held},
            "train": {"in a held-out document": held, "in another document": seen},
        }
        compared: dict[Split, list[Entry]] = {}
        # Held-out text comes first: training text is what gives way.
        for split in ("held-out", "train"):
            own = list(indexes[split].values())[-1]
            compared[split] = []
            for entry in sides[split]:
                text = self._without_repeats(entry, raw.read(entry), indexes[split], own)
                if text:
                    compared[split].append(_replaced(entry, text, kept))
                progress.add(entry.num_bytes)
        return compared

    def write(self, sides: Mapping[Split, list[Entry]], spool: Spool, folder: Path) -> None:
        """Tokenizer, shards and the list of documents."""
        if not sides["train"]:
            raise DataError(self._nothing_left())
        tokenizer = self._tokenizer(sides["train"], spool)
        tokenizer.save(folder / "tokenizer")
        self.report.vocab_size = tokenizer.vocab_size
        self.report.tokenizer_sha256 = tokenizer.sha256
        total = sum(entry.num_bytes for side in sides.values() for entry in side)
        progress = Counted(self._on_progress, "encode", total)
        lines: list[str] = []
        for split in SPLITS:
            counts, documents = write_split(
                folder / split,
                sides[split],
                spool,
                tokenizer=tokenizer,
                provenance=self._provenance,
                progress=progress,
            )
            self.report.splits[split] = counts
            lines += documents
        write_text_durably(folder / "documents.jsonl", "".join(lines))

    def _objection(self, document: Document, text: str) -> str:
        """Why a document is dropped, or nothing."""
        wanted, language = self._options.language, document.metadata.get("language")
        if wanted and language and language.partition("-")[0].lower() != wanted:
            return f"not in the language {wanted}"
        if len(text) < self._options.min_characters:
            return f"shorter than {self._options.min_characters} characters"
        return ""

    def _sides(self, entries: list[Entry]) -> dict[Split, list[Entry]]:
        wanted = self._options.held_out if self._end_id is None else [self._end_id]
        held_out = held_out_ids([entry.id for entry in entries], wanted)
        if self._options.held_out and not held_out:
            self.report.notes.append("Nothing is held out: the text is too short to be divided.")
        if self._options.order == "simplest-first":
            entries = sorted(entries, key=lambda entry: (entry.difficulty, entry.id))
        return {
            "train": [entry for entry in entries if entry.id not in held_out],
            "held-out": [entry for entry in entries if entry.id in held_out],
        }

    def _without_repeats(
        self,
        entry: Entry,
        text: str,
        indexes: Mapping[str, ParagraphIndex],
        own: ParagraphIndex,
    ) -> str:
        """The text that is left of a document; nothing if that is too short."""
        left, dropped = without_repeats(entry.id, text, indexes, own)
        self.report.paragraphs_dropped += dropped
        self.report.paragraph_bytes_dropped += entry.num_bytes - len(left.encode())
        if dropped and len(left) < self._options.min_characters:
            self.report.documents_dropped["too little that is not in other documents"] += 1
            return ""
        return left

    def _tokenizer(self, entries: list[Entry], spool: Spool) -> Tokenizer:
        if self._options.tokenizer is not None:
            return self._options.tokenizer
        self._on_progress("train", 0, 0)
        num_bytes = sum(entry.num_bytes for entry in entries)
        sample = list(spread_sample(map(spool.read, entries), num_bytes))
        tokenizer = train_tokenizer(sample, self._options.vocab_size)
        if tokenizer.vocab_size < self._options.vocab_size:
            self.report.notes.append(
                f"The vocabulary has {tokenizer.vocab_size} tokens, not the "
                f"{self._options.vocab_size} asked for: the text gives no more."
            )
        return tokenizer

    def _nothing_left(self) -> str:
        reasons = self.report.unreadable + self.report.documents_dropped
        counted = ", ".join(f"{reason} ({count})" for reason, count in reasons.most_common(3))
        return f"no text is left to train on: {counted or 'the sources have none'}."


def _replaced(entry: Entry, text: str, spool: Spool) -> Entry:
    return spool.add(
        text, document_id=entry.id, metadata=entry.metadata, difficulty=entry.difficulty
    )
