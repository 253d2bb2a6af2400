"""Plain text and Markdown: a file is a document."""

from pathlib import PurePosixPath

from bluejay.corpus.archives import Member
from bluejay.corpus.document import Document, RejectedError

SUFFIXES = (".txt", ".md", ".text", ".markdown")


def text_document(member: Member) -> Document:
    """The whole file, called by its name. Raises RejectedError for what is not UTF-8 text."""
    try:
        text = member.read().decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RejectedError("not UTF-8") from None
    if "\0" in text:
        raise RejectedError("not a text: it has zero bytes")
    title = PurePosixPath(member.name).stem
    return Document(text=text, id=member.name, metadata={"title": title, "source": member.name})
