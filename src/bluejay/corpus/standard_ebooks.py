"""Books as Standard Ebooks publishes them: a folder of XHTML pages becomes one document.

<book>/LICENSE.md                    the dedication to the public domain
<book>/src/epub/content.opf          title, authors, language, and the order of the pages
<book>/src/epub/text/*.xhtml         the pages
"""

import posixpath
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterable, Iterator, Mapping

from bluejay.corpus.archives import Member
from bluejay.corpus.cleaning import typed_characters
from bluejay.corpus.document import Document, RejectedError
from bluejay.corpus.xhtml import page_paragraphs, parse_xml

MAX_PAGE_BYTES = 1 << 26
"""The longest page of the 324 books has 1.1 MB."""
MAX_BOOK_BYTES = 1 << 28

_OPF = "{http://www.idpf.org/2007/opf}"
_DATA = f"{_OPF}metadata/{{http://purl.org/dc/elements/1.1/}}"
_PLACE = re.compile(r"(?:.*/)?(?P<book>[^/]+)/(?P<file>src/epub/.+|LICENSE\.md)")
_CONTENT = "src/epub/content.opf"
_PAGE = re.compile(r"src/epub/text/[^/]+\.xhtml")
_AROUND = frozenset(["titlepage.xhtml", "imprint.xhtml", "colophon.xhtml", "uncopyright.xhtml"])
_CC0 = re.compile(r"CC0[ -]1\.0", re.IGNORECASE)


def book_of(name: str) -> tuple[str, str] | None:
    """The book and the file in it that a member's name stands for, or None if it is no book's."""
    place = _PLACE.fullmatch(name)
    return (place["book"], place["file"]) if place else None


class BookReader:
    """Collects the files of one book after the other, which have to come together."""

    def __init__(self) -> None:
        self._book = ""
        self._files: dict[str, bytes] = {}
        self._num_bytes = 0

    def add(self, book: str, file: str, member: Member) -> Iterator[Document | RejectedError]:
        """Take a file; the book before it, if this one starts another."""
        if book != self._book:
            yield from self.finish()
            self._book = book
        if file in (_CONTENT, "LICENSE.md") or _PAGE.fullmatch(file):
            try:
                data = member.read(MAX_PAGE_BYTES)
            except RejectedError as error:
                yield error
                return
            self._num_bytes += len(data)
            if self._num_bytes <= MAX_BOOK_BYTES:
                self._files[file] = data

    def finish(self) -> Iterator[Document | RejectedError]:
        """The last book."""
        book, files, num_bytes = self._book, self._files, self._num_bytes
        self._book, self._files, self._num_bytes = "", {}, 0
        if set(files) == {"LICENSE.md"}:
            yield RejectedError("a licence, which is no text to learn from")
        elif _CONTENT not in files:
            if files:
                yield RejectedError("a book without content.opf")
        elif num_bytes > MAX_BOOK_BYTES:
            yield RejectedError(f"a book larger than {MAX_BOOK_BYTES >> 20} MiB")
        else:
            yield from _book_or_rejects(book, files)


def _book_or_rejects(book: str, files: Mapping[str, bytes]) -> Iterator[Document | RejectedError]:
    try:
        package = parse_xml(files[_CONTENT])
        pages = _reading_order(package, files)
    except RejectedError as error:
        yield RejectedError(f"a book whose content.opf is {error}")
        return
    paragraphs: list[str] = []
    for page in pages:
        try:
            if page not in files:
                raise RejectedError("missing")
            paragraphs += page_paragraphs(parse_xml(files[page]))
        except RejectedError as error:
            yield RejectedError(f"a page of a book: {error}")
    yield Document(
        text="\n\n".join(paragraphs),
        id=book,
        metadata=_metadata(package, files.get("LICENSE.md", b"")),
    )


def _reading_order(package: ElementTree.Element, files: Mapping[str, bytes]) -> list[str]:
    """The pages of the spine; where that names nothing but the pages around a book, as drafts
    do, all pages by name and number."""
    spine = list(_spine(package))
    if any(posixpath.basename(page) not in _AROUND for page in spine):
        return spine
    return sorted(filter(_PAGE.fullmatch, files), key=_name_and_number)


def _name_and_number(page: str) -> list[str | int]:
    """So that chapter-2 comes before chapter-10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", page)]


def _spine(package: ElementTree.Element) -> Iterator[str]:
    """The pages in reading order."""
    places = {
        item.get("id"): item.get("href", "")
        for item in package.iterfind(f"{_OPF}manifest/{_OPF}item")
    }
    for reference in package.iterfind(f"{_OPF}spine/{_OPF}itemref"):
        place = places.get(reference.get("idref"), "")
        path = posixpath.normpath(posixpath.join("src/epub", place))
        if _PAGE.fullmatch(path):
            yield path


def _metadata(package: ElementTree.Element, licence: bytes) -> dict[str, str]:
    is_cc0 = _CC0.search(licence.decode("utf-8", errors="replace"))
    found = {
        "title": _main_title(package),
        "authors": ", ".join(_texts(package.iterfind(f"{_DATA}creator"))),
        "language": next(_texts(package.iterfind(f"{_DATA}language")), ""),
        "source": next(_texts(package.iterfind(f"{_DATA}identifier")), ""),
        "licence": "CC0-1.0" if is_cc0 else "",
    }
    return {key: value for key, value in found.items() if value}


def _main_title(package: ElementTree.Element) -> str:
    kinds = {
        meta.get("refines", "").removeprefix("#"): meta.text
        for meta in package.iterfind(f"{_OPF}metadata/{_OPF}meta")
        if meta.get("property") == "title-type"
    }
    titles = list(package.iterfind(f"{_DATA}title"))
    main = [title for title in titles if kinds.get(title.get("id", "")) == "main"]
    return next(_texts(main or titles), "")


def _texts(elements: Iterable[ElementTree.Element]) -> Iterator[str]:
    for element in elements:
        text = " ".join(typed_characters("".join(element.itertext())).split())
        if text:
            yield text
