"""Fetches the books of the corpus from where they are published, each at its pinned commit."""

import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from bluejay.core.errors import DataError, UsageError
from bluejay.core.files import disk_error

GITHUB = "https://github.com/"
_PARALLEL = 4
_WANTED = ("LICENSE.md", "src/epub/content.opf", "src/epub/text")
_OPTIONS = (
    # A link or a converted line end would make another text than the pinned one.
    *("-c", "core.symlinks=false", "-c", "core.autocrlf=false"),
    # A connection that brings nothing for a minute is over.
    *("-c", "http.lowSpeedLimit=1", "-c", "http.lowSpeedTime=60"),
)

OnBook = Callable[[str, int, int], None]
"""Called with the title of a book that is here, and how many of how many there are."""


@dataclass(frozen=True, kw_only=True)
class Book:
    """A book as `owner/name` of a git repository at a commit."""

    repository: str
    commit: str
    title: str

    @property
    def name(self) -> str:
        """The name of its folder."""
        return self.repository.rpartition("/")[2]


def known_books() -> list[Book]:
    """The 324 books that Bluejay is trained on: public domain in the USA, edition CC0-1.0."""
    text = (files("bluejay.corpus") / "data" / "books.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines()[1:]]
    return [Book(repository=where, commit=commit, title=title) for where, commit, title in rows]


def fetch_books(
    destination: Path,
    *,
    books: Sequence[Book] | None = None,
    base_url: str = GITHUB,
    on_progress: OnBook = lambda _title, _done, _total: None,
) -> Path:
    """Bring the texts of the books (all by default) to `destination`, a folder for each.

    What is there already is not fetched again. Raises UsageError without git, DataError for a
    book that cannot be fetched, DiskError.
    """
    if shutil.which("git") is None:
        raise UsageError("Books are fetched with git, which is not installed: install it first.")
    wanted = known_books() if books is None else books
    try:
        destination.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(error, destination) from error
    missing = [book for book in wanted if not (destination / book.name).is_dir()]
    with ThreadPoolExecutor(_PARALLEL) as pool:
        fetched = {pool.submit(_fetch, book, destination, base_url): book for book in missing}
        try:
            for count, future in enumerate(as_completed(fetched), start=1):
                future.result()
                done = len(wanted) - len(missing) + count
                on_progress(fetched[future].title, done, len(wanted))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return destination


def _fetch(book: Book, destination: Path, base_url: str) -> None:
    """Fetch one book into a folder that gets its name when it is complete."""
    partial = destination / f".{book.name}.partial-{os.getpid()}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        _git(book, partial, "init", "--quiet", "--template=")
        _git(book, partial, "remote", "add", "origin", base_url + book.repository)
        # The pictures of a book are ten times its text: take the tree first, then what is wanted.
        filters = ("--depth=1", "--filter=blob:none")
        _git(book, partial, "fetch", "--quiet", "--no-tags", *filters, "origin", book.commit)
        _git(book, partial, "checkout", "--quiet", book.commit, "--", *_WANTED)
        shutil.rmtree(partial / ".git")
        partial.rename(destination / book.name)
    except OSError as error:
        raise disk_error(error, destination) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _git(book: Book, folder: Path, *arguments: str) -> None:
    # Asking for a password would wait for ever; a repository that is gone asks for one.
    settings = {"GIT_TERMINAL_PROMPT": "0", "GIT_DIR": str(folder / ".git"), "LC_ALL": "C"}
    done = subprocess.run(
        ["git", *_OPTIONS, "-C", str(folder), *arguments],
        env=os.environ | settings | {"GIT_WORK_TREE": str(folder)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith(("fatal:", "error:"))]
        reason = (said or done.stderr.split("\n"))[0].partition(": ")[2][:200] or "git failed"
        raise DataError(
            f"{book.repository} cannot be fetched ({reason}): check the connection and run the "
            "command again, which keeps the books that are here."
        )
