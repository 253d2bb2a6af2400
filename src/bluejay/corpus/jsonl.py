"""JSON lines: an object on each line is a document."""

import json
from collections.abc import Iterator

from bluejay.corpus.archives import Member
from bluejay.corpus.document import Document, RejectedError

SUFFIXES = (".jsonl", ".ndjson")
MAX_LINE_BYTES = 1 << 28
_METADATA = ("source", "licence", "license", "title", "authors", "language")


def line_documents(member: Member, *, field: str = "text") -> Iterator[Document | RejectedError]:
    """The document in the `field` of each line, or why a line has none; blank lines are none.

    A document is called by the line's own "id", else by the file and the number of the line.
    """
    number = 0
    while line := member.stream.readline(MAX_LINE_BYTES):
        number += 1
        if len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            yield RejectedError(f"a line longer than {MAX_LINE_BYTES >> 20} MiB")
            while line and not line.endswith(b"\n"):
                line = member.stream.readline(MAX_LINE_BYTES)
        elif line.strip():
            try:
                yield _document(line, name=f"{member.name}:{number}", field=field, file=member.name)
            except RejectedError as error:
                yield error


def _document(line: bytes, *, name: str, field: str, file: str) -> Document:
    try:
        value = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise RejectedError("a line that is not UTF-8") from None
    except (ValueError, RecursionError):
        raise RejectedError("a line that is no JSON") from None
    text = value.get(field) if isinstance(value, dict) else None
    if not isinstance(text, str):
        raise RejectedError(f"a line without text in {field!r}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RejectedError("a line with half of a character (a lone surrogate)") from None
    known = {key: value[key] for key in _METADATA if isinstance(value.get(key), str)}
    if "license" in known:
        known.setdefault("licence", known.pop("license"))
    own = value.get("id")
    identity = str(own) if isinstance(own, str | int) and own != "" else name
    return Document(text=text, id=identity, metadata={"source": file} | known)
