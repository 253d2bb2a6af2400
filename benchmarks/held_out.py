"""Bits per byte of held-out text: compressors, a 5-gram model, trained models.

    python benchmarks/held_out.py DATA [--model MODEL ...] [--overlap N]
                                  [--slow-model MODEL ... --tokens N]

DATA is what `bluejay prepare` wrote. gzip, bzip2 and xz compress the held-out text alone. The
5-gram model (kneser_ney.py) learns from all tokens of DATA/train. A MODEL, given as to
`bluejay generate`, scores each document from its document start, in windows as bits_per_byte.py
does; one with another tokenizer encodes the text itself. Bits per byte are the negative log2
likelihood of the text over its UTF-8 bytes: document starts are read, never predicted.

`--overlap N` gives every MODEL a second row, in windows that overlap by N tokens: each token is
then predicted from at least N before it. A `--slow-model` scores about `--tokens N` tokens in all,
the beginnings of documents spread evenly over DATA; the others have a row for that text too.
"""

import argparse
import bz2
import gzip
import json
import lzma
import math
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from kneser_ney import KneserNey
from numpy.typing import NDArray

from bluejay.shards.reader import TokenShards
from bluejay.vocab.loading import load_tokenizer
from bluejay.vocab.tokenizer import Tokenizer

ORDER = 5
EXCERPTS = ", excerpts"
# So that a limited score is that of several books: at most one for so many tokens.
EXCERPT_TOKENS = 4096

COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "gzip -9": lambda data: gzip.compress(data, 9),
    "bzip2 -9": lambda data: bz2.compress(data, 9),
    "xz -9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
}


@dataclass(frozen=True, kw_only=True)
class Passage:
    """A document or its beginning: the document start and the ids of its text, and the text."""

    ids: NDArray[np.int32]
    text: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one method made of a text; a compressor has no tokens."""

    name: str
    bits: float
    num_bytes: int
    num_tokens: int | None
    seconds: float


def held_out_documents(data: Path, tokenizer: Tokenizer) -> list[Passage]:
    """The documents of DATA/held-out, cut apart by the sizes in documents.jsonl."""
    shards = TokenShards(data / "held-out")
    lines = (data / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    listed = [entry for entry in map(json.loads, lines) if entry["split"] == "held-out"]
    ends = np.cumsum([entry["tokens"] for entry in listed])
    if not listed or ends[-1] != shards.num_tokens:
        raise SystemExit(
            f"{data}: documents.jsonl lists {ends[-1] if listed else 0} held-out tokens, and the "
            f"shards hold {shards.num_tokens}: prepare the data again, holding documents out."
        )
    pieces = np.split(shards.read(0, shards.num_tokens), ends[:-1])
    documents = [Passage(ids=ids, text=tokenizer.decode(ids[1:].tolist())) for ids in pieces]
    if text_bytes(documents) != shards.manifest.num_text_bytes:
        raise SystemExit(f"{data}: the held-out ids do not give the text that they were made from.")
    return documents


def excerpts(
    documents: Sequence[Passage], tokenizer: Tokenizer, *, num_tokens: int
) -> list[Passage]:
    """The beginnings of documents spread evenly, about `num_tokens` tokens of text in all."""
    count = min(len(documents), max(1, num_tokens // EXCERPT_TOKENS))
    chosen = np.linspace(0, len(documents) - 1, count).round().astype(int)
    return [beginning(documents[i], tokenizer, num_tokens=num_tokens // count) for i in chosen]


def beginning(document: Passage, tokenizer: Tokenizer, *, num_tokens: int) -> Passage:
    """The first tokens of a document, fewer if a character would be cut."""
    for end in range(1 + min(num_tokens, len(document.ids) - 1), 1, -1):
        data = tokenizer.decode_bytes(document.ids[1:end].tolist())
        text = data.decode(errors="ignore")
        if len(text.encode()) == len(data):
            return Passage(ids=document.ids[:end], text=text)
    return Passage(ids=document.ids[:1], text="")


def text_bytes(passages: Sequence[Passage]) -> int:
    return sum(len(passage.text.encode()) for passage in passages)


def compressor_rows(documents: Sequence[Passage]) -> list[Row]:
    data, rows = "".join(document.text for document in documents).encode(), []
    for name, compress in COMPRESSORS.items():
        began = time.perf_counter()
        size = len(compress(data))
        seconds = time.perf_counter() - began
        rows.append(
            Row(name=name, bits=8 * size, num_bytes=len(data), num_tokens=None, seconds=seconds)
        )
    return rows


def kneser_ney_rows(data: Path, texts: dict[str, Sequence[Passage]]) -> list[Row]:
    """A row for each of the named texts; that of the first includes the time of fitting."""
    shards, began = TokenShards(data / "train"), time.perf_counter()
    tokens = shards.read(0, shards.num_tokens)
    model = KneserNey.fit(tokens, vocab_size=shards.manifest.vocab_size, order=ORDER)
    rows = []
    for note, passages in texts.items():
        nats, num_tokens = kneser_ney_nats(model, passages)
        ended = time.perf_counter()
        rows.append(
            Row(
                name=f"{ORDER}-gram Kneser-Ney on {shards.num_tokens:,} tokens{note}",
                bits=nats / math.log(2),
                num_bytes=text_bytes(passages),
                num_tokens=num_tokens,
                seconds=ended - began,
            )
        )
        began = ended
    return rows


def kneser_ney_nats(model: KneserNey, passages: Sequence[Passage]) -> tuple[float, int]:
    """(negative log likelihood, tokens) of the texts, which follow each other as in training."""
    scores = model.log_probabilities(np.concatenate([passage.ids for passage in passages]))
    is_text = np.ones(len(scores), np.bool_)
    starts = np.cumsum([len(passage.ids) for passage in passages])[:-1]
    is_text[starts - 1] = False
    return -float(scores[is_text].sum()), int(is_text.sum())


def model_row(
    name: str,
    passages: Sequence[Passage],
    tokenizer: Tokenizer,
    *,
    note: str = "",
    overlap: int = 0,
) -> Row:
    # The module brings JAX, which the other rows need not wait for.
    from bits_per_byte import nats

    import bluejay

    lm = bluejay.load(name)
    own = lm.tokenizer.sha256 == tokenizer.sha256
    began, total, num_tokens = time.perf_counter(), 0.0, 0
    for passage in passages:
        ids = passage.ids.tolist() if own else lm.prompt_ids(passage.text)
        total += nats(lm, ids, overlap=overlap)
        num_tokens += len(ids) - 1
    reach = f", at least {overlap:,} seen" if overlap else ""
    return Row(
        name=f"{name} (context {lm.config.context_length:,}{reach}){note}",
        bits=total / math.log(2),
        num_bytes=text_bytes(passages),
        num_tokens=num_tokens,
        seconds=time.perf_counter() - began,
    )


def table(rows: Sequence[Row]) -> str:
    lines = [
        "| held-out text | bits per byte | bytes scored | tokens | seconds |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        tokens = "" if row.num_tokens is None else f"{row.num_tokens:,}"
        lines.append(
            f"| {row.name} | {row.bits / row.num_bytes:.4f} | {row.num_bytes:,} | {tokens} "
            f"| {row.seconds:.1f} |"
        )
    return "\n".join(lines)


def hardware() -> str:
    from bluejay.runs.doctor import look_at_machine

    machine = look_at_machine()
    return f"{machine.processor}, {machine.num_usable_cores} cores, {', '.join(machine.devices)}"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What is scored: models on all text (twice with an overlap), slow ones on excerpts."""

    models: Sequence[str] = ()
    overlap: int = 0
    slow_models: Sequence[str] = ()
    num_tokens: int = 40_000


def measure(data: Path, scored: Scored) -> list[Row]:
    from bluejay.checkpoints.locate import locate

    for name in (*scored.models, *scored.slow_models):
        locate(name)  # what is missing is said now and not after minutes
    tokenizer = load_tokenizer(data / "tokenizer")
    documents = held_out_documents(data, tokenizer)
    texts = {"": documents}
    if scored.slow_models:
        texts[EXCERPTS] = excerpts(documents, tokenizer, num_tokens=scored.num_tokens)
    rows = [*compressor_rows(documents), *kneser_ney_rows(data, texts)]
    for note, passages in texts.items():
        for name in (*scored.models, *(scored.slow_models if note else ())):
            rows.append(model_row(name, passages, tokenizer, note=note))
            if scored.overlap and name in scored.models:
                overlap = scored.overlap
                rows.append(model_row(name, passages, tokenizer, note=note, overlap=overlap))
    return rows


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="?")
    parser.add_argument("--model", action="append", default=[])
    parser.add_argument("--overlap", type=int, default=0)
    parser.add_argument("--slow-model", action="append", default=[])
    parser.add_argument("--tokens", type=int, default=Scored.num_tokens)
    options = parser.parse_args(words)
    if options.data is None:
        print(f"{__doc__}\nNothing to do: name a folder of prepared data.")
        return
    began = time.perf_counter()
    scored = Scored(
        models=options.model,
        overlap=options.overlap,
        slow_models=options.slow_model,
        num_tokens=options.tokens,
    )
    rows = measure(options.data, scored)
    # Kilobytes everywhere but on macOS, which counts bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    print(table(rows))
    print(
        f"\n{hardware()}; {time.strftime('%Y-%m-%d')}; {time.perf_counter() - began:.0f} s in "
        f"all, peak memory {peak:.1f} GiB."
    )


if __name__ == "__main__":
    main()
