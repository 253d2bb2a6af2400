"""Sources of any kind to documents, in an order that never changes."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from bluejay.corpus import jsonl, plain_text
from bluejay.corpus.archives import Member, OnBytes, members
from bluejay.corpus.document import Document, RejectedError
from bluejay.corpus.standard_ebooks import BookReader, book_of


def read_documents(
    sources: Iterable[Path], *, text_field: str = "text", on_bytes: OnBytes = lambda _: None
) -> Iterator[Document | RejectedError]:
    """Every document of the sources, and a RejectedError for everything that gives none.

    A source is a text (.txt, .md), JSON lines (.jsonl, `text_field` is the text), a tar archive
    of either or of books as Standard Ebooks publishes them, or a folder of all of that. Raises
    UsageError for a source that is not there, DataError for one that is damaged.
    """
    for source in sources:
        books = BookReader()
        for member in members(source, on_bytes):
            book = book_of(member.name)
            if book is not None:
                yield from books.add(*book, member)
            else:
                yield from _documents_in(member, text_field)
        yield from books.finish()


def _documents_in(member: Member, text_field: str) -> Iterator[Document | RejectedError]:
    name = member.name.lower()
    if name.endswith(plain_text.SUFFIXES):
        try:
            yield plain_text.text_document(member)
        except RejectedError as error:
            yield error
    elif name.endswith(jsonl.SUFFIXES):
        yield from jsonl.line_documents(member, field=text_field)
    else:
        yield RejectedError("a file that is neither .txt, .md, .jsonl nor of a book")
