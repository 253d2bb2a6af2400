"""Books from local git repositories: pinned, resumed, and refused in one sentence."""

import os
import subprocess
from pathlib import Path

import pytest

from bluejay.core.errors import DataError, UsageError
from bluejay.corpus.document import Document
from bluejay.corpus.fetching import Book, fetch_books, known_books
from bluejay.corpus.reading import read_documents
from mini_books import book_files, chapter, write_files

IDENTITY = {
    f"GIT_{role}_{what}": "t@example.org"
    for role in ("AUTHOR", "COMMITTER")
    for what in ("NAME", "EMAIL")
}


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(
        command, env=os.environ | IDENTITY, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def publish(root: Path, name: str, text: str) -> Book:
    """A repository with a book, a picture, and a later commit that nobody pinned."""
    files = book_files(name, {"chapter-1.xhtml": chapter("I", text)})
    files[f"{name}/images/cover.jpg"] = b"picture"
    folder = write_files(root / "owner", files) / name
    git(folder, "init", "--quiet")
    # GitHub allows both.
    git(folder, "config", "uploadpack.allowFilter", "true")
    git(folder, "config", "uploadpack.allowAnySHA1InWant", "true")
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "-m", "first")
    commit = git(folder, "rev-parse", "HEAD")
    (folder / "src" / "epub" / "text" / "chapter-1.xhtml").write_bytes(chapter("I", "changed"))
    git(folder, "commit", "--quiet", "-a", "-m", "second")
    return Book(repository=f"owner/{name}", commit=commit, title=name.title())


@pytest.fixture
def published(tmp_path: Path) -> tuple[str, list[Book]]:
    root = tmp_path / "hub"
    books = [publish(root, name, f"text of {name}") for name in ("alice", "heidi", "kim")]
    return f"file://{root}/", books


def test_books_come_at_their_commits_and_can_be_read(
    tmp_path: Path, published: tuple[str, list[Book]]
) -> None:
    base_url, books = published
    told: list[tuple[str, int, int]] = []
    here = fetch_books(
        tmp_path / "books",
        books=books,
        base_url=base_url,
        on_progress=lambda *report: told.append(report),
    )
    assert sorted(p.name for p in here.iterdir()) == ["alice", "heidi", "kim"]
    assert not (here / "kim" / "images").exists()
    assert not (here / "kim" / ".git").exists()
    documents = [d for d in read_documents([here]) if isinstance(d, Document)]
    assert [d.text for d in documents] == [f"I\n\ntext of {n}" for n in ("alice", "heidi", "kim")]
    assert documents[0].metadata["licence"] == "CC0-1.0"
    assert sorted(title for title, _, _ in told) == ["Alice", "Heidi", "Kim"]
    assert [done for _, done, _ in told] == [1, 2, 3]


def test_what_is_here_is_not_fetched_again(
    tmp_path: Path, published: tuple[str, list[Book]]
) -> None:
    base_url, books = published
    fetch_books(tmp_path / "books", books=books[:1], base_url=base_url)
    (tmp_path / "books" / "alice" / "LICENSE.md").write_text("mark")
    told: list[int] = []
    fetch_books(
        tmp_path / "books",
        books=books,
        base_url=base_url,
        on_progress=lambda _title, done, _total: told.append(done),
    )
    assert told == [2, 3]
    assert (tmp_path / "books" / "alice" / "LICENSE.md").read_text() == "mark"


def test_a_book_that_cannot_be_fetched_is_named_and_the_others_stay(
    tmp_path: Path, published: tuple[str, list[Book]]
) -> None:
    base_url, books = published
    fetch_books(tmp_path / "books", books=books[:1], base_url=base_url)
    for book in (
        Book(repository="owner/gone", commit="0" * 40, title="Gone"),
        Book(repository=books[1].repository, commit="1" * 40, title="Another commit"),
    ):
        with pytest.raises(DataError, match=f"{book.repository} cannot be fetched") as caught:
            fetch_books(tmp_path / "books", books=[*books[:1], book], base_url=base_url)
        assert "run the command again" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert [p.name for p in (tmp_path / "books").iterdir()] == ["alice"]


def test_without_git_a_sentence_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="git, which is not installed"):
        fetch_books(tmp_path / "books")


def test_the_list_names_324_books_at_whole_commits() -> None:
    books = known_books()
    assert len({book.name for book in books}) == len(books) == 324
    for book in books:
        assert len(book.commit) == 40
        assert set(book.commit) <= set("0123456789abcdef")
        assert book.repository.count("/") == 1
        assert book.title


def test_the_list_is_that_of_the_data_folder(data_folder: Path) -> None:
    lines = (data_folder / "text" / "books" / "BOOKS.tsv").read_text("utf-8").splitlines()[1:]
    pinned = {tuple(line.split("\t")[1:3]) for line in lines}
    assert pinned == {(book.repository, book.commit) for book in known_books()}
