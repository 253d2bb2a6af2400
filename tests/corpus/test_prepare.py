"""From sources to shards: nothing leaks, everything dropped is counted, the bytes never change."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest

from bluejay.core.errors import DataError, DiskError, UsageError
from bluejay.corpus.archives import members
from bluejay.corpus.document import Document
from bluejay.corpus.prepare import PrepareOptions, prepare
from bluejay.corpus.reading import read_documents
from bluejay.corpus.report import PrepareReport
from bluejay.shards.reader import TokenShards
from bluejay.vocab.gpt2 import gpt2_tokenizer
from bluejay.vocab.loading import load_tokenizer
from mini_books import book_files, chapter, write_files, write_tar_zst

SHARED = "This paragraph stands in two books, word for word, and is longer than eighty characters."
ADJECTIVES = ("small", "green", "quiet", "old", "clever", "northern", "wooden", "hungry", "late")
NOUNS = ("fox", "river", "baker", "garden", "letter", "clock", "winter", "bridge", "sailor")


def sentences(seed: int, count: int = 40) -> list[str]:
    """Paragraphs that no other seed has."""
    return [
        f"In chapter {seed} the {ADJECTIVES[(seed + n) % 9]} {NOUNS[(seed * n) % 9]} number {n} "
        f"met a {ADJECTIVES[(n * n + seed) % 9]} {NOUNS[n % 9]}, “and so it’s told”."
        for n in range(count)
    ]


def many_books(number: int = 12) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    for seed in range(number):
        extra = [SHARED] if seed in (0, 5) else []
        pages = {"chapter-1.xhtml": chapter("I", *sentences(seed), *extra)}
        files |= book_files(f"book-{seed}", pages)
    return files


def documents_of(folder: Path) -> dict[str, dict[str, Any]]:
    lines = (folder / "documents.jsonl").read_text(encoding="utf-8").splitlines()
    return {document["id"]: document for document in map(json.loads, lines)}


def texts_of(folder: Path, split: str) -> list[str]:
    """The texts in the shards of a side, which the start id separates."""
    tokenizer = load_tokenizer(folder / "tokenizer")
    shards = TokenShards(folder / split)
    assert shards.manifest.tokenizer_sha256 == tokenizer.sha256
    assert shards.manifest.vocab_size == tokenizer.vocab_size
    text = tokenizer.decode(shards.read(0, shards.num_tokens).tolist())
    assert text.startswith("<|endoftext|>") or not text
    return text.split("<|endoftext|>")[1:]


@pytest.fixture(scope="module")
def books(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tar_zst(tmp_path_factory.mktemp("books") / "books.tar.zst", many_books())


@pytest.fixture(scope="module")
def prepared(books: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PrepareReport]:
    out = tmp_path_factory.mktemp("out") / "prepared"
    return out, prepare([books], out, options=PrepareOptions(vocab_size=400, held_out=["book-5"]))


def test_the_folder_has_what_was_promised(prepared: tuple[Path, PrepareReport]) -> None:
    out, report = prepared
    assert sorted(path.name for path in out.iterdir()) == [
        "REPORT.json",
        "documents.jsonl",
        "held-out",
        "tokenizer",
        "train",
    ]
    assert json.loads((out / "REPORT.json").read_text()) == report.to_json()
    document = documents_of(out)["book-5"]
    assert document.pop("tokens") > 100
    assert document.pop("bytes") > 1000
    assert document == {
        "id": "book-5",
        "title": "The Title of book-5",
        "authors": "Ann Author, Bo Writer",
        "licence": "CC0-1.0",
        "source": "https://example.org/ebooks/book-5",
        "language": "en-GB",
        "split": "held-out",
    }


def test_whole_books_are_on_one_side_and_their_text_comes_back(
    prepared: tuple[Path, PrepareReport], books: Path
) -> None:
    out, report = prepared
    found = {d.id: d.text for d in read_documents([books]) if isinstance(d, Document)}
    typed = {
        name: text.translate({0x201C: '"', 0x201D: '"', 0x2019: "'"})
        for name, text in found.items()
    }
    assert texts_of(out, "held-out") == [typed.pop("book-5")]
    # Training text gives way where both have a paragraph.
    typed["book-0"] = typed["book-0"].removesuffix(f"\n\n{SHARED}")
    assert texts_of(out, "train") == list(typed.values())
    assert report.paragraphs_dropped == {"in a held-out document": 1}
    assert report.paragraph_bytes_dropped == len(SHARED) + 2
    assert {d["split"] for n, d in documents_of(out).items() if n != "book-5"} == {"train"}


def test_the_counts_add_up(prepared: tuple[Path, PrepareReport]) -> None:
    out, report = prepared
    for split in ("train", "held-out"):
        counts, manifest = report.splits[split], TokenShards(out / split).manifest
        listed = [d for d in documents_of(out).values() if d["split"] == split]
        assert counts.documents == manifest.num_documents == len(listed)
        assert counts.tokens == manifest.num_tokens == sum(d["tokens"] for d in listed)
        assert counts.num_bytes == manifest.num_text_bytes == sum(d["bytes"] for d in listed)
        texts = texts_of(out, split)
        assert counts.characters == sum(map(len, texts))
        assert counts.num_bytes == sum(len(text.encode()) for text in texts)
    assert report.documents_read == 12
    assert TokenShards(out / "train").manifest.provenance == {
        "order": "given",
        "held_out": ["book-5"],
        "documents": "../documents.jsonl",
        "sources": ["books.tar.zst"],
        "split": "train",
        "licences": {"CC0-1.0": 11},
    }


def test_two_runs_are_equal_to_the_byte(
    prepared: tuple[Path, PrepareReport], books: Path, tmp_path: Path
) -> None:
    out, _ = prepared
    again = tmp_path / "again"
    prepare([books], again, options=PrepareOptions(vocab_size=400, held_out=["book-5"]))
    names = sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(again) for p in again.rglob("*") if p.is_file())
    for name in names:
        assert (out / name).read_bytes() == (again / name).read_bytes(), name


def test_the_order_can_be_simplest_first(tmp_path: Path) -> None:
    hard = " ".join(["Notwithstanding considerable jurisdictional complications"] * 20) + "."
    easy = "The cat sat. It was fat. " * 20
    files = {"b/1-hard.txt": hard.encode(), "b/2-easy.txt": easy.encode()}
    source = write_files(tmp_path, files) / "b"
    for order, expected in (("given", ["b/1-hard.txt", "b/2-easy.txt"]), ("simplest-first", None)):
        options = PrepareOptions(vocab_size=257, held_out=0, order=order)  # type: ignore[arg-type]
        prepare([source], tmp_path / order, options=options)
        assert list(documents_of(tmp_path / order)) == (
            expected or ["b/2-easy.txt", "b/1-hard.txt"]
        )


def test_everything_that_is_dropped_is_counted(tmp_path: Path) -> None:
    first, second = (
        "\n\n".join(f"{s} It goes on for a while." for s in sentences(n)) for n in (1, 2)
    )
    files = {
        "t/a.txt": first.encode(),
        "t/b.txt": first.replace("fox", "fox,").encode(),
        "t/c.txt": b"short",
        "t/d.txt": second.encode(),
        "t/e.bin": b"?",
        "t/f.txt": b"\xff",
        "t/g.jsonl": json.dumps({"text": first, "language": "de", "id": "g"}).encode(),
    }
    source = write_files(tmp_path, files) / "t"
    options = PrepareOptions(vocab_size=300, held_out=0, language="en")
    report = prepare(
        [source, source / "d.txt", source / "a.txt"], tmp_path / "out", options=options
    )
    assert report.unreadable == {
        "a file that is neither .txt, .md, .jsonl nor of a book": 1,
        "not UTF-8": 1,
    }
    assert report.documents_dropped == {
        "shorter than 200 characters": 1,
        "not in the language en": 1,
        "too little that is not in other documents": 3,
    }
    assert report.paragraphs_dropped == {"in another document": 120}
    assert report.documents_read == 7
    assert report.splits["train"].documents == 2


def test_an_id_that_comes_twice_is_taken_once(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(sentences(1)))
    path = tmp_path / "a.txt"
    report = prepare([path, path], tmp_path / "out", options=PrepareOptions(vocab_size=300))
    assert report.documents_dropped == {"the same id as an earlier document": 1}
    assert "Nothing is held out: the text is too short to be divided." in report.notes
    assert TokenShards(tmp_path / "out" / "held-out").num_tokens == 0


def test_the_end_of_an_only_document_is_held_out(tmp_path: Path) -> None:
    parts = sentences(1, 60)
    (tmp_path / "my.txt").write_text("\n\n".join(parts))
    options = PrepareOptions(vocab_size=300, held_out=0.1)
    report = prepare([tmp_path / "my.txt"], tmp_path / "out", options=options)
    [beginning], [end] = texts_of(tmp_path / "out", "train"), texts_of(tmp_path / "out", "held-out")
    typed = "\n\n".join(parts).translate({0x201C: '"', 0x201D: '"', 0x2019: "'"})
    assert f"{beginning}\n\n{end}" == typed
    assert 0.08 < len(end) / len(typed) < 0.13
    assert list(documents_of(tmp_path / "out")) == ["my.txt", "my.txt (end)"]
    assert report.notes == ["There is one document: its end is held out."]


def test_a_small_text_gets_the_vocabulary_that_it_gives(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("\n\n".join(sentences(1, 9)))
    report = prepare([tmp_path / "a.txt"], tmp_path / "out", options=PrepareOptions(held_out=0))
    assert 257 < report.vocab_size < 4096
    [note] = report.notes
    assert note.startswith(f"The vocabulary has {report.vocab_size} tokens, not the 4096")
    tokenizer = load_tokenizer(tmp_path / "out" / "tokenizer")
    assert tokenizer.vocab_size == report.vocab_size


def test_a_tokenizer_can_be_given(books: Path, tmp_path: Path) -> None:
    options = PrepareOptions(tokenizer=gpt2_tokenizer())
    report = prepare([books], tmp_path / "out", options=options)
    assert report.vocab_size == 50257
    assert report.tokenizer_sha256 == gpt2_tokenizer().sha256
    assert TokenShards(tmp_path / "out" / "train").read(0, 1).tolist() == [50256]
    assert report.splits["held-out"].documents >= 1


def test_progress_comes_to_its_end_in_every_phase(books: Path, tmp_path: Path) -> None:
    seen: dict[str, tuple[int, int]] = {}

    def on_progress(phase: str, done: int, total: int) -> None:
        assert done <= total
        seen[phase] = (done, total)

    options = PrepareOptions(vocab_size=300)
    prepare([books], tmp_path / "out", options=options, on_progress=on_progress)
    assert list(seen) == ["read", "compare", "train", "encode"]
    assert all(done == total for done, total in seen.values())
    assert seen["read"][0] == books.stat().st_size


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"vocab_size": 256}, "257"),
        ({"held_out": 1.5}, "1.5"),
        ({"order": "random"}, "simplest-first"),
        ({"held_out": ["no-such-book"]}, "no-such-book"),
    ],
)
def test_requests_that_cannot_be_met(
    books: Path, tmp_path: Path, options: dict[str, Any], part: str
) -> None:
    with pytest.raises(UsageError, match=part):
        prepare([books], tmp_path / "out", options=PrepareOptions(**options))
    assert list(tmp_path.iterdir()) == []


def test_failures_leave_nothing_behind(books: Path, tmp_path: Path) -> None:
    cut = tmp_path / "in" / "cut.tar.zst"
    cut.parent.mkdir()
    cut.write_bytes(books.read_bytes()[:-50])
    with pytest.raises(DataError, match="fetch it again"):
        prepare([cut], tmp_path / "out")
    with pytest.raises(UsageError, match="nothing to prepare"):
        prepare([], tmp_path / "out")
    (tmp_path / "in" / "x.txt").write_text("short")
    with pytest.raises(DataError, match=r"no text is left .* shorter than 200 characters \(1\)"):
        prepare([tmp_path / "in" / "x.txt"], tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_folder_that_is_there_is_left_alone(books: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        prepare([books], tmp_path)
    assert (tmp_path / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("call", [1, 3, 5])
def test_a_full_disk_is_a_disk_error(
    books: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
) -> None:
    calls = 0

    def full(_descriptor: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="the disk is full"):
        prepare([books], tmp_path / "out", options=PrepareOptions(vocab_size=300))
    assert list(tmp_path.iterdir()) == []


def test_real_books_split_and_come_back(data_folder: Path, tmp_path: Path) -> None:
    """Five of them: all take minutes under the checks of the suite."""
    files: dict[str, bytes] = {}
    for member in members(data_folder / "text" / "books" / "standardebooks-06.tar.zst"):
        files[member.name] = member.read()
        if len({name.partition("/")[0] for name in files}) > 5:
            files.popitem()
            break
    source = write_tar_zst(tmp_path / "five.tar.zst", files)
    options = PrepareOptions(vocab_size=2000, order="simplest-first")
    report = prepare([source], tmp_path / "out", options=options)
    assert report.splits["train"].documents == 4
    assert report.splits["held-out"].documents == 1
    assert 2.5 < report.splits["held-out"].bytes_per_token < 4
    for split in ("train", "held-out"):
        assert TokenShards(tmp_path / "out" / split).verify() == []
        for text in texts_of(tmp_path / "out", split):
            assert text.strip() == text
            assert len(text) > 50_000
            assert "\ufffd" not in text
