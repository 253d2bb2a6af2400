"""The prose of an XHTML page: paragraphs, verses, headings, rows of a play."""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator

from bluejay.corpus.cleaning import typed_characters
from bluejay.corpus.document import RejectedError

_XHTML = "{http://www.w3.org/1999/xhtml}"
_TYPE = "{http://www.idpf.org/2007/ops}type"
_BREAK = "\x1e"  # not allowed in XML, so never in a text

_BLOCKS = {
    *("address", "article", "aside", "blockquote", "body", "dd", "div", "dl", "dt", "footer"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "li", "main", "ol", "p", "pre"),
    *("section", "table", "tbody", "td", "tfoot", "th", "thead", "ul"),
}
_LEFT_OUT = {
    *("audio", "caption", "figcaption", "figure", "form", "head", "iframe", "img", "math", "nav"),
    *("object", "script", "style", "svg", "template", "video"),
}
_TYPES_LEFT_OUT = {
    *("backlink", "colophon", "copyright-page", "dedication", "endnotes", "epigraph", "footnotes"),
    *("halftitlepage", "imprint", "index", "loi", "lot", "noteref", "titlepage", "toc"),
    "z3998:frontispiece",
}
# A chapter may begin with a motto, in a blockquote: that stays. A page of mottos goes.
_PAGES_ONLY = {"dedication", "epigraph"}
_PAGE_TAGS = {"article", "body", "section"}


def parse_xml(data: bytes) -> ElementTree.Element:
    """The root of a page. Raises RejectedError for what is not UTF-8 XML, or defines entities:
    a few bytes of those may stand for gigabytes."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise RejectedError("not UTF-8") from None
    if "<!ENTITY" in text or re.search(r"<!DOCTYPE[^>]*\[", text):
        raise RejectedError("XML that defines entities")
    try:
        # Comments and processing instructions are not in the tree.
        return ElementTree.fromstring(text)
    except ElementTree.ParseError:
        raise RejectedError("damaged XML") from None


def page_paragraphs(root: ElementTree.Element) -> list[str]:
    """The paragraphs of a page's body in reading order, lines of verse on lines of their own.

    Titles are paragraphs. Notes and their marks, figures, lists of contents and the pages around
    a book (title, imprint, dedication, mottos, colophon) are left out.
    """
    body = root.find(f"{_XHTML}body")
    if body is None:
        raise RejectedError("a page without a body")
    try:
        return _paragraphs(body)
    except RecursionError:
        raise RejectedError("XML nested too deeply") from None


def _paragraphs(element: ElementTree.Element) -> list[str]:
    prose = _Prose()
    prose.add(element)
    prose.end_paragraph()
    return prose.paragraphs


class _Prose:
    """Collects paragraphs while it walks through the elements of a page."""

    def __init__(self) -> None:
        self.paragraphs: list[str] = []
        self._pieces: list[str] = []

    def add(self, element: ElementTree.Element) -> None:
        tag = _tag(element)
        if _is_left_out(element, tag):
            return
        if tag == "br":
            self._pieces.append(_BREAK)
        elif tag in ("hgroup", "tr"):
            self._add_together(element, is_row=tag == "tr")
        elif tag in _BLOCKS:
            self.end_paragraph()
            self._add_content(element, keeps_lines=tag == "pre")
            self.end_paragraph()
        elif "z3998:stage-direction" in _types(element):
            # Style sheets add the parentheses, as print has them.
            self._pieces.append("(")
            self._add_content(element)
            self._pieces.append(")")
        else:
            self._add_content(element)

    def end_paragraph(self) -> None:
        lines = "".join(self._pieces).split(_BREAK)
        self._pieces.clear()
        text = "\n".join(filter(None, (_one_line(line) for line in lines)))
        if text:
            self.paragraphs.append(text)

    def _add_content(self, element: ElementTree.Element, *, keeps_lines: bool = False) -> None:
        for text in _pieces_of(element):
            if isinstance(text, str):
                self._pieces.append(text.replace("\n", _BREAK) if keeps_lines else text)
            elif keeps_lines and not _is_left_out(text, _tag(text)):
                self._add_content(text, keeps_lines=True)
            else:
                self.add(text)

    def _add_together(self, element: ElementTree.Element, *, is_row: bool) -> None:
        """One paragraph: the lines of a heading, or the cells of a row (speaker: speech)."""
        self.end_paragraph()
        parts = [(child, "\n".join(_paragraphs(child))) for child in element]
        parts = [(child, text) for child, text in parts if text]
        if is_row and len(parts) > 1 and "z3998:persona" in _types(parts[0][0]):
            speaker, speech = parts[0][1], " ".join(text for _, text in parts[1:])
            self.paragraphs.append(f"{speaker.rstrip('.:')}: {speech}")
        elif parts:
            self.paragraphs.append((" " if is_row else "\n").join(text for _, text in parts))


def _pieces_of(element: ElementTree.Element) -> Iterator[str | ElementTree.Element]:
    yield element.text or ""
    for child in element:
        yield child
        yield child.tail or ""


def _is_left_out(element: ElementTree.Element, tag: str) -> bool:
    left_out = _types(element) & _TYPES_LEFT_OUT
    if tag not in _PAGE_TAGS:
        left_out -= _PAGES_ONLY
    return tag in _LEFT_OUT or bool(left_out)


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _types(element: ElementTree.Element) -> frozenset[str]:
    return frozenset((element.get(_TYPE) or "").split())


def _one_line(text: str) -> str:
    return " ".join(typed_characters(text).split())
