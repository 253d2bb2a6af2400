"""Text files and JSON lines: a document each, and a reason for what is none."""

import json
from pathlib import Path

import pytest
import zstandard

from bluejay.corpus.document import Document
from bluejay.corpus.reading import read_documents
from mini_books import write_files, write_tar_zst


def texts_and_reasons(source: Path, **options: str) -> tuple[dict[str, str], list[str]]:
    found = list(read_documents([source], **options))  # type: ignore[arg-type]
    documents = {item.id: item.text for item in found if isinstance(item, Document)}
    return documents, [str(item) for item in found if not isinstance(item, Document)]


def test_a_file_is_a_document(tmp_path: Path) -> None:
    (tmp_path / "my.TXT").write_bytes(b"\xef\xbb\xbfcaf\xc3\xa9\r\n")
    assert texts_and_reasons(tmp_path / "my.TXT") == ({"my.TXT": "café\r\n"}, [])


def test_a_folder_of_many_kinds(tmp_path: Path) -> None:
    files = {
        "sub/b.md": b"# B",
        "a.txt": b"A",
        "picture.png": b"\x89PNG",
        "latin1.txt": "café".encode("latin-1"),
        "binary.txt": b"a\0b",
    }
    folder = write_files(tmp_path / "texts", files)
    (folder / "lines.jsonl.zst").write_bytes(zstandard.compress(b'{"text": "line"}\n'))
    write_tar_zst(folder / "more.tar.zst", {"deep/c.txt": b"C"})
    documents, reasons = texts_and_reasons(folder)
    assert documents == {
        "texts/a.txt": "A",
        "texts/lines.jsonl:1": "line",
        "deep/c.txt": "C",
        "texts/sub/b.md": "# B",
    }
    assert sorted(reasons) == [
        "a file that is neither .txt, .md, .jsonl nor of a book",
        "not UTF-8",
        "not a text: it has zero bytes",
    ]


def test_lines_give_documents_or_reasons(tmp_path: Path) -> None:
    lines = [
        json.dumps({"text": "one", "id": "first", "license": "MIT", "title": "T", "year": 1}),
        "",
        json.dumps({"text": "two", "id": 7}),
        json.dumps({"text": 3}),
        json.dumps(["text"]),
        "{broken",
        "[" * 100_000,
        '{"text": "\\ud800"}',
        json.dumps({"text": "last"}),
    ]
    path = tmp_path / "x.jsonl"
    path.write_bytes("\n".join(lines).encode() + b'\n{"text": "\xff"}')
    documents, reasons = texts_and_reasons(path)
    assert documents == {"first": "one", "7": "two", "x.jsonl:9": "last"}
    assert reasons == [
        "a line without text in 'text'",
        "a line without text in 'text'",
        "a line that is no JSON",
        "a line that is no JSON",
        "a line with half of a character (a lone surrogate)",
        "a line that is not UTF-8",
    ]
    [first, *_] = [d for d in read_documents([path]) if isinstance(d, Document)]
    assert first.metadata == {"source": "x.jsonl", "licence": "MIT", "title": "T"}


def test_another_field_may_be_the_text(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"description": "A word.", "text": 1}\n')
    documents, reasons = texts_and_reasons(path, text_field="description")
    assert list(documents.values()) == ["A word."]
    assert reasons == []


def test_a_line_without_end_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bluejay.corpus.jsonl.MAX_LINE_BYTES", 1 << 20)
    path = tmp_path / "x.jsonl"
    path.write_bytes(b"x" * (5 << 20) + b'\n{"text": "after"}\n')
    assert texts_and_reasons(path) == ({"x.jsonl:2": "after"}, ["a line longer than 1 MiB"])
