"""Bits per byte of a model on whole books.

    python benchmarks/bits_per_byte.py MODEL ARCHIVE BOOK [BOOK ...]
    python benchmarks/bits_per_byte.py MODEL TEXT_FILE [TEXT_FILE ...]

ARCHIVE is a tar of Standard Ebooks folders (`tar` unpacks it), BOOK a folder's name in it: the
text is that of its XHTML files in order, without markup. The text is scored in windows of at most
2,048 tokens (or the model's context, if that is shorter), each of which begins with the last token
of the one before (the rolling likelihood of lm-evaluation-harness); the first begins with the
document start. gzip and xz are given beside.
"""

import gzip
import lzma
import math
import sys
import tarfile
import tempfile
import time
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from subprocess import run

import numpy as np

import bluejay
from bluejay.generation.generate import allowed_log_probabilities
from bluejay.runs.language_model import LanguageModel

WINDOW = 2048
BLOCKS = {"p", "h1", "h2", "h3", "h4", "h5", "h6", "li", "blockquote", "br", "div", "tr"}


class BookText(HTMLParser):
    """Text of the body, one line per block element."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._in_body = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in_body = self._in_body or tag == "body"

    def handle_endtag(self, tag: str) -> None:
        if tag in BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if self._in_body:
            self.parts.append(data)


def book_text(archive: Path, book: str) -> str:
    with tempfile.TemporaryDirectory() as scratch:
        run(["tar", "xf", str(archive), "-C", scratch], check=True)
        folder = next(path for path in Path(scratch).iterdir() if path.name == book)
        parser = BookText()
        for page in sorted(folder.glob("src/epub/text/*.xhtml")):
            parser.feed(page.read_text(encoding="utf-8"))
            parser.parts.append("\n")
    lines = (" ".join(line.split()) for line in "".join(parser.parts).splitlines())
    return "\n".join(line for line in lines if line)


def nats(lm: LanguageModel, ids: Sequence[int], *, overlap: int = 0) -> float:
    """Negative log likelihood of all ids but the first.

    With an overlap each window begins so many tokens earlier, and those are not scored again.
    """
    total, size = 0.0, min(WINDOW, lm.config.context_length)
    assert 0 <= overlap < size
    for begin in windows(len(ids) - 1, size, overlap):
        window = ids[begin : begin + size + 1]
        scores = allowed_log_probabilities(lm.runner.score(window[:-1]), lm.allowed)
        chosen = scores[np.arange(len(window) - 1), window[1:]].astype(np.float64)
        total -= float(chosen[overlap if begin else 0 :].sum())
        if sys.stderr.isatty():
            done = f"\r{begin + len(window)} of {len(ids)} tokens"
            print(done, end="", file=sys.stderr, flush=True)
    if sys.stderr.isatty():
        print(file=sys.stderr)
    return total


def windows(count: int, size: int, overlap: int) -> range:
    """Where windows begin that together predict `count` tokens; the last is a whole one's rest."""
    return range(0, max(1, count - overlap), size - overlap)


def main() -> None:
    if len(sys.argv) < 3:
        print(f"{__doc__}\nNothing to do: name a model and a text.")
        return
    model, source, *books = sys.argv[1:]
    if tarfile.is_tarfile(source) or ".tar" in source:
        texts = {book: book_text(Path(source), book) for book in books}
    else:
        texts = {name: Path(name).read_text(encoding="utf-8") for name in (source, *books)}
    lm = bluejay.load(model)
    for name, text in texts.items():
        began, data = time.perf_counter(), text.encode()
        ids = lm.prompt_ids(text)
        total, tokens = nats(lm, ids), len(ids) - 1
        seconds = time.perf_counter() - began
        print(
            f"{name}: {len(data):,} bytes, {tokens:,} tokens, "
            f"{total / math.log(2) / len(data):.4f} bits per byte "
            f"(gzip {8 * len(gzip.compress(data)) / len(data):.3f}, "
            f"xz {8 * len(lzma.compress(data)) / len(data):.3f}); "
            f"{tokens / seconds:.0f} tokens/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
