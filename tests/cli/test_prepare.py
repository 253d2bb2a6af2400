"""`bluejay prepare` as a shell meets it: tables, JSON, exit codes, one sentence for mistakes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bluejay.cli.status import Status
from bluejay.shards.reader import TokenShards
from bluejay.vocab.gpt2 import gpt2_tokenizer
from mini_books import book_files, chapter, write_tar_zst
from text_models import write_text_model

BLUEJAY = [sys.executable, "-m", "bluejay", "prepare"]


def bluejay(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    settings = {k: v for k, v in os.environ.items() if k not in ("BLUEJAY_DATA", "BLUEJAY_DEBUG")}
    return subprocess.run(
        [*BLUEJAY, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=settings | environment,
    )


def refused(*arguments: object, code: int, **environment: str) -> str:
    """The one sentence on stderr of a command that must fail with `code`."""
    done = bluejay(*arguments, **environment)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("bluejay: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with an archive of four books."""
    folder = tmp_path_factory.mktemp("data")
    files: dict[str, bytes] = {}
    for n in range(4):
        prose = [f"“Paragraph {k} of book {n},” he said — and went on… as ever." for k in range(30)]
        files |= book_files(f"book-{n}", {"chapter-1.xhtml": chapter("I", *prose), "x.xhtml": b"<"})
    (folder / "text" / "books").mkdir(parents=True)
    write_tar_zst(folder / "text" / "books" / "books.tar.zst", files)
    return folder


def test_the_books_of_the_data_folder_are_prepared(data: Path, tmp_path: Path) -> None:
    done = bluejay("--out", tmp_path / "out", "--vocab-size", 300, BLUEJAY_DATA=str(data))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["documents", "characters", "tokens", "bytes/token"]
    assert [line.split()[:2] for line in lines[1:3]] == [["train", "3"], ["held-out", "1"]]
    assert "4  not read: a page of a book: damaged XML" in done.stdout
    assert lines[-1] == f"Prepared: {tmp_path / 'out'}"
    assert TokenShards(tmp_path / "out" / "train").manifest.vocab_size == 300


def test_json_is_the_report(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = bluejay("--data", data, "--out", out, "--vocab-size", 300, "--held-out", 0, "--json")
    document = json.loads(done.stdout)
    assert document.pop("folder") == str(out)
    assert document == json.loads((out / "REPORT.json").read_text())
    assert document["splits"]["held-out"]["documents"] == 0
    assert document["unreadable"] == {"a page of a book: damaged XML": 4}


def test_ones_own_text_with_the_tokenizer_of_a_model(tmp_path: Path) -> None:
    model = write_text_model(tmp_path / "model")
    gpt2_tokenizer().save(tmp_path / "gpt2")
    text = tmp_path / "mine.jsonl"
    text.write_text(
        "".join(json.dumps({"body": f"the sea and {n} ships " * 20}) + "\n" for n in range(9))
    )
    prepared = {}
    for name in ("model", "gpt2"):
        out = tmp_path / f"out-{name}"
        done = bluejay(text, "-o", out, "--tokenizer", tmp_path / name, "--field", "body")
        assert done.returncode == 0, done.stderr
        prepared[name] = TokenShards(out / "train").manifest
    assert prepared["gpt2"].tokenizer_sha256 == gpt2_tokenizer().sha256
    assert prepared["model"].num_documents == prepared["gpt2"].num_documents
    # What was prepared before is a place to take the tokenizer from.
    again = bluejay(
        text, "-o", tmp_path / "again", "--tokenizer", tmp_path / "out-gpt2", "--field", "body"
    )
    assert again.returncode == 0, again.stderr
    assert TokenShards(tmp_path / "again" / "train").manifest == prepared["gpt2"]
    assert model.is_dir()


def test_mistakes_get_one_sentence_with_the_remedy(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    sentence = refused("--out", out, code=2)
    for remedy in ("--data", "--fetch-books", "files"):
        assert remedy in sentence
    assert "--out" in refused(data, code=2)
    assert "holds no books" in refused("-o", out, "--data", tmp_path, code=2)
    assert "no.txt" in refused(tmp_path / "no.txt", "-o", out, code=2)
    assert "simplest-first" in refused(data, "-o", out, "--order", "simple", code=2)
    assert "1.5" in refused(data, "-o", out, "--held-out", "1.5", code=2)
    assert "no-such-model" in refused(data, "-o", out, "--tokenizer", "no-such-model", code=2)
    assert "either files or --fetch-books" in refused(data, "-o", out, "--fetch-books", code=2)
    assert "exists already" in refused("--data", data, "-o", data, code=2)
    assert list(tmp_path.iterdir()) == []


def test_damaged_sources_are_data_errors(tmp_path: Path) -> None:
    (tmp_path / "x.tar.zst").write_bytes(b"no archive")
    assert "fetch it again" in refused(tmp_path / "x.tar.zst", "-o", tmp_path / "out", code=3)
    (tmp_path / "x.txt").write_text("short")
    assert "no text is left" in refused(tmp_path / "x.txt", "-o", tmp_path / "out", code=3)


def test_books_that_cannot_be_fetched(tmp_path: Path) -> None:
    """Without a connection: a proxy that is not there stands for it."""
    offline = {"HTTPS_PROXY": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}
    arguments = ("--fetch-books", "--data", tmp_path, "-o", tmp_path / "out")
    sentence = refused(*arguments, code=3, **offline)
    assert "cannot be fetched" in sentence
    assert "run the command again" in sentence
    assert not (tmp_path / "out").exists()


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys\nfrom bluejay.cli.main import run\n"
        "try:\n    run(['prepare', '--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'jax', 'numpy', 'tokenizers', 'zstandard'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_every_phase_has_words() -> None:
    from typing import get_args

    from bluejay.cli.prepare import reporter
    from bluejay.corpus.progress import Phase

    report = reporter(Status())
    for phase in get_args(Phase):
        report(phase, 1, 2)
