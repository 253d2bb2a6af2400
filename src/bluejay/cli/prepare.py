"""`bluejay prepare`: raw text to a tokenizer and token shards."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bluejay.cli.parser import CommandParser, one_of, positive_number, real_number
from bluejay.cli.status import Status, status
from bluejay.cli.table import print_table
from bluejay.core.errors import UsageError
from bluejay.corpus.ordering import ORDERS

if TYPE_CHECKING:
    from bluejay.corpus.report import PrepareReport
    from bluejay.vocab.tokenizer import Tokenizer

_BOOKS = "text/books"
_PHASES = {
    "read": "Reading and cleaning",
    "compare": "Looking for repeated paragraphs",
    "train": "Training the tokenizer",
    "encode": "Encoding",
}


def add_arguments(parser: CommandParser) -> None:
    """The options of `bluejay prepare`."""
    parser.add_argument(
        "sources",
        metavar="SRC",
        nargs="*",
        help=".txt, .md, .jsonl(.zst), .tar(.gz|.zst), or folders of them (default: the books)",
    )
    parser.add_argument("-o", "--out", metavar="DIR", required=True, help="the folder to make")
    parser.add_argument(
        "--data", metavar="FOLDER", help=f"where {_BOOKS} lies (default: $BLUEJAY_DATA)"
    )
    parser.add_argument(
        "--fetch-books", action="store_true", help="fetch the books first, with git, once"
    )
    parser.add_argument(
        "--vocab-size",
        metavar="N",
        type=positive_number,
        default=4096,
        help="tokens of the tokenizer to train (default: 4096)",
    )
    parser.add_argument(
        "--tokenizer", metavar="MODEL", help="use a model's tokenizer, or a tokenizer folder"
    )
    parser.add_argument(
        "--held-out",
        metavar="F",
        type=real_number,
        default=0.03,
        help="share of documents that training never sees (default: 0.03)",
    )
    parser.add_argument(
        "--order",
        metavar="|".join(ORDERS),
        type=one_of(*ORDERS),
        default=ORDERS[0],
        help="of the documents; simplest-first sorts by sentence and word length",
    )
    parser.add_argument(
        "--field", metavar="NAME", default="text", help="of .jsonl lines (default: text)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(arguments: argparse.Namespace) -> None:
    """Prepare with progress, then say what came out of what, and what was dropped."""
    out = Path(arguments.out).expanduser()
    with status() as shown:
        shown.say("Looking for the sources")
        sources = _sources(arguments, shown)
        from bluejay.corpus.prepare import PrepareOptions, prepare

        options = PrepareOptions(
            vocab_size=arguments.vocab_size,
            tokenizer=tokenizer_of(arguments.tokenizer) if arguments.tokenizer else None,
            held_out=arguments.held_out,
            order=arguments.order,
            text_field=arguments.field,
        )
        report = prepare(sources, out, options=options, on_progress=reporter(shown))
    if arguments.json:
        print(json.dumps({"folder": str(out)} | report.to_json(), ensure_ascii=False, indent=2))
    else:
        _print_report(report, out)


def reporter(shown: Status) -> Callable[[str, int, int], None]:
    """What `prepare` calls, on the status line."""
    return lambda phase, done, total: shown.say(_PHASES[phase], done, total)


def _sources(arguments: argparse.Namespace, shown: Status) -> list[Path]:
    """What was named, or the books; UsageError says how to come by some."""
    if arguments.sources:
        if arguments.fetch_books:
            raise UsageError("Give either files or --fetch-books: run the command once for each.")
        return [Path(source).expanduser() for source in arguments.sources]
    data = arguments.data or os.environ.get("BLUEJAY_DATA")
    if arguments.fetch_books:
        return [_fetched_books(data, shown)]
    if not data:
        raise UsageError(
            "There is nothing to prepare: give files or folders, --data with the folder of raw "
            "text, or --fetch-books to fetch 324 books."
        )
    from bluejay.corpus.archives import book_sources

    found = book_sources(Path(data).expanduser())
    if not found:
        raise UsageError(
            f"{Path(data) / _BOOKS} holds no books: give another --data, or --fetch-books to "
            "fetch them there."
        )
    return found


def _fetched_books(data: str | None, shown: Status) -> Path:
    from bluejay.checkpoints.model_cache import cache_root
    from bluejay.corpus.fetching import fetch_books

    def on_book(title: str, done: int, total: int) -> None:
        shown.say(f"Fetching book {done} of {total}: {title}")

    destination = Path(data).expanduser() / _BOOKS if data else cache_root() / "books"
    shown.say("Fetching books")
    return fetch_books(destination, on_progress=on_book)


def tokenizer_of(model: str) -> Tokenizer:
    """That of a tokenizer folder or a prepared one, or else of a model."""
    from bluejay.checkpoints.locate import locate
    from bluejay.checkpoints.model_files import open_model
    from bluejay.vocab.loading import load_tokenizer

    given = Path(model).expanduser()
    for folder in (given, given / "tokenizer"):
        if (folder / "tokenizer.json").is_file() and not (folder / "config.json").exists():
            return load_tokenizer(folder)
    files = open_model(locate(model))
    try:
        found = files.tokenizer()
    finally:
        files.close()
    if found is None:
        raise UsageError(f"{model} has no tokenizer: name a model that has one.")
    return found


def _print_report(report: PrepareReport, out: Path) -> None:
    rows = [
        [
            split,
            f"{counts.documents:,}",
            f"{counts.characters:,}",
            f"{counts.tokens:,}",
            f"{counts.bytes_per_token:.3f}",
        ]
        for split, counts in report.splits.items()
    ]
    header = ["", "documents", "characters", "tokens", "bytes/token"]
    print_table(rows, header=header, right=[1, 2, 3, 4])
    print()
    dropped = [
        [f"{count:,}", f"{kind}: {reason}"]
        for kind, reasons in (
            ("not read", report.unreadable),
            ("documents dropped", report.documents_dropped),
            ("paragraphs dropped", report.paragraphs_dropped),
        )
        for reason, count in reasons.most_common()
    ]
    print_table(dropped, right=[0], flexible=1)
    for note in report.notes:
        print(note)
    print(
        f"{report.vocab_size:,} tokens in the vocabulary, {report.documents_read:,} documents read."
    )
    print(f"Prepared: {out}")
