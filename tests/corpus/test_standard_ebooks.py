"""Books as documents: order, metadata, what stays of a page, what makes one unreadable."""

from pathlib import Path

import pytest

from bluejay.corpus.cleaning import cleaned
from bluejay.corpus.document import Document, RejectedError
from bluejay.corpus.ordering import difficulty
from bluejay.corpus.reading import read_documents
from bluejay.corpus.xhtml import page_paragraphs, parse_xml
from mini_books import book_files, chapter, page, write_files, write_tar_zst


def prose(body: str) -> list[str]:
    """The paragraphs of a page with this body."""
    return page_paragraphs(parse_xml(page(body)))


def read(source: Path) -> tuple[list[Document], list[str]]:
    """Documents, and reasons of rejects."""
    found = list(read_documents([source]))
    documents = [item for item in found if isinstance(item, Document)]
    return documents, [str(item) for item in found if isinstance(item, RejectedError)]


def test_a_real_page_becomes_what_a_reader_sees() -> None:
    """From Alice's Adventures in Wonderland, with its own markup and characters."""
    body = """
		<section id="chapter-7" epub:type="chapter">
			<hgroup>
				<h2 epub:type="z3998:ordinal z3998:roman">VII</h2>
				<p epub:type="title">A Mad Tea-Party</p>
			</hgroup>
			<p>“I’ve had nothing yet,” Alice replied in an offended tone, “so I can’t take
			more.”<a href="endnotes.xhtml#note-1" id="noteref-1" epub:type="noteref">1</a></p>
			<figure><img alt="A table." src="../images/i.svg"/><figcaption>Tea</figcaption></figure>
			<p>“Yes,” said <abbr epub:type="z3998:name-title">Mr.</abbr>\u00a0Hatter\u2060—“<em>very
			</em>well.\u2060\u200a\u2060…”</p>
			<blockquote epub:type="z3998:verse">
				<p>
					<span>“\u200a‘Twinkle, twinkle, little bat!</span>
					<br/>
					<span class="i1">How I wonder what you’re at!’\u200a”</span>
				</p>
			</blockquote>
			<hr/>
			<p>Once more\u200a… she found her\u00adself in a Ph.\u200aD.’s hall.</p>
		</section>"""
    assert prose(body) == [
        "VII\nA Mad Tea-Party",
        '"I\'ve had nothing yet," Alice replied in an offended tone, "so I can\'t take more."',
        '"Yes," said Mr. Hatter—"very well.…"',
        "\"'Twinkle, twinkle, little bat!\nHow I wonder what you're at!'\"",
        "Once more… she found herself in a Ph. D.'s hall.",
    ]


def test_plays_name_the_speaker_of_a_row() -> None:
    """From The Mayor of Casterbridge, chapter 44."""
    body = """<table><tbody>
		<tr><td epub:type="z3998:persona">He</td><td>Is it a secret why?</td></tr>
		<tr><td epub:type="z3998:persona">She</td>
		<td><i epub:type="z3998:stage-direction">Reluctantly.</i> Yes.</td></tr>
		<tr><td>James Island</td><td>71</td><td>33</td></tr>
	</tbody></table>"""
    assert prose(body) == [
        "He: Is it a secret why?",
        "She: (Reluctantly.) Yes.",
        "James Island 71 33",
    ]


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("<section epub:type='titlepage'><h1>T</h1></section>", []),
        ("<section epub:type='dedication z3998:verse'><p>To Bo</p></section>", []),
        ("<section epub:type='epigraph'><p>motto</p></section><p>x</p>", ["x"]),
        ("<nav epub:type='toc'><ol><li>I</li></ol></nav><p>x</p>", ["x"]),
        ("<section epub:type='endnotes'><ol><li><p>note</p></li></ol></section>", []),
        # A motto over a chapter is a part of it, a page of mottos is not.
        ("<blockquote epub:type='epigraph'><p>motto</p></blockquote>", ["motto"]),
        (
            "<ul><li>one<ul><li>two</li></ul></li><li><p>three</p></li></ul>",
            ["one", "two", "three"],
        ),
        ("<pre>a\n  <i>b\nc</i></pre>", ["a\nb\nc"]),
        ("<dl><dt>Art</dt><dd><p>A word.</p></dd></dl>", ["Art", "A word."]),
        ("<p>a<!-- no --> <?no?>b</p>tail", ["a b", "tail"]),
        ("<p>  <br/> \u00a0\u00a0x<br/><br/>y </p><p> </p>", ["x\ny"]),
    ],
)
def test_blocks_and_what_is_left_out(body: str, expected: list[str]) -> None:
    assert prose(body) == expected


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\xff<p/>", "not UTF-8"),
        (b"<p><q></p>", "damaged XML"),
        (b'<!DOCTYPE x [<!ENTITY a "aaaa">]><x>&a;</x>', "defines entities"),
        (b'<!DOCTYPE x SYSTEM ">" [<!ENTITY a "aaaa">]><x>&a;</x>', "defines entities"),
        (b'<!DOCTYPE x SYSTEM "file:///etc/passwd" [<!ELEMENT x ANY>]><x/>', "defines entities"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><x/>'.encode("utf-16"), "not UTF-8"),
        (b"", "damaged XML"),
    ],
)
def test_hostile_and_damaged_pages_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(RejectedError, match=reason):
        parse_xml(data)


def test_a_page_without_end_of_nesting_is_refused() -> None:
    with pytest.raises(RejectedError, match="nested too deeply"):
        prose("<i>" * 50_000 + "</i>" * 50_000)


@pytest.mark.parametrize("kind", ["folder", "archive", "book"])
def test_a_book_is_one_document_in_spine_order(tmp_path: Path, kind: str) -> None:
    pages = {
        "chapter-2.xhtml": chapter("Two", "second"),
        "chapter-10.xhtml": chapter("Ten", "tenth"),
        "chapter-1.xhtml": chapter("One", "first"),
        "titlepage.xhtml": page("<section epub:type='titlepage'><h1>T</h1></section>"),
    }
    spine = ["titlepage.xhtml", "chapter-10.xhtml", "chapter-1.xhtml", "chapter-2.xhtml"]
    files = book_files("ann-author_book", pages, spine=spine)
    if kind == "archive":
        source = write_tar_zst(tmp_path / "books.tar.zst", files)
    else:
        source = write_files(tmp_path / "books", files)
    [document], rejects = read(source if kind != "book" else source / "ann-author_book")
    assert document.id == "ann-author_book"
    assert document.text == "Ten\n\ntenth\n\nOne\n\nfirst\n\nTwo\n\nsecond"
    assert document.metadata == {
        "title": "The Title of ann-author_book",
        "authors": "Ann Author, Bo Writer",
        "language": "en-GB",
        "source": "https://example.org/ebooks/ann-author_book",
        "licence": "CC0-1.0",
    }
    assert rejects == []


def test_a_draft_without_a_spine_is_read_by_number(tmp_path: Path) -> None:
    pages = {f"chapter-{n}.xhtml": chapter(str(n), "x") for n in (10, 9, 1)}
    files = book_files("draft", pages, spine=["titlepage.xhtml", "colophon.xhtml"])
    [document], _ = read(write_tar_zst(tmp_path / "b.tar.zst", files))
    assert document.text == "1\n\nx\n\n9\n\nx\n\n10\n\nx"


def test_the_other_files_of_a_repository_do_not_part_a_book(tmp_path: Path) -> None:
    files = book_files("a", {"chapter-1.xhtml": chapter("I", "x")})
    files |= {"a/images/cover.jpg": b"?", "a/src/epub/css/core.css": b"?", "b/LICENSE.md": b"MIT"}
    documents, rejects = read(write_files(tmp_path / "f", files))
    assert [document.metadata.get("licence") for document in documents] == ["CC0-1.0"]
    assert sorted(rejects) == [
        "a file that is neither .txt, .md, .jsonl nor of a book",
        "a licence, which is no text to learn from",
    ]


def test_what_is_wrong_with_a_book_is_told_and_the_rest_read(tmp_path: Path) -> None:
    good = book_files("b-good", {"chapter-1.xhtml": chapter("I", "good")})
    damaged = book_files("a-damaged", {"chapter-1.xhtml": chapter("I", "fine"), "c.xhtml": b"<x"})
    missing = book_files("c", {"d.xhtml": chapter("I", "x")}, spine=["gone.xhtml", "d.xhtml"])
    headless = {"d-headless/src/epub/text/a.xhtml": chapter("I", "x")}
    bomb = book_files("e-bomb", {"a.xhtml": chapter("I", "x")})
    bomb["e-bomb/src/epub/content.opf"] = b'<!DOCTYPE p [<!ENTITY a "b">]><p/>'
    files = damaged | good | missing | headless | bomb
    documents, rejects = read(write_tar_zst(tmp_path / "b.tar.zst", files))
    assert [d.id for d in documents] == ["a-damaged", "b-good", "c"]
    assert rejects == [
        "a page of a book: damaged XML",
        "a page of a book: missing",
        "a book without content.opf",
        "a book whose content.opf is XML that defines entities",
    ]


def test_real_books_have_no_markup_or_typesetting_left(data_folder: Path) -> None:
    source = data_folder / "text" / "books" / "standardebooks-00.tar.zst"
    documents, rejects = read(source)
    assert len(documents) == 59
    assert rejects == []
    for document in documents:
        text = cleaned(document.text)
        assert cleaned(text) == text
        assert len(text) > 50_000, document.id
        assert not set("‘’“”\u00a0\u200a\u2060\u00ad↩<>") & set(text), document.id
        assert "  " not in text
        assert document.metadata["licence"] == "CC0-1.0"
        assert document.metadata["authors"]
    alice = next(d for d in documents if d.metadata["title"].startswith("Alice"))
    assert alice.text.startswith("I\nDown the Rabbit-Hole\n\nAlice was beginning to get very tired")
    assert alice.text.rstrip().endswith("the happy summer days.")
    simple = next(d for d in documents if d.id == "a-a-milne_winnie-the-pooh")
    hard = next(d for d in documents if d.id == "charles-kingsley_the-water-babies")
    assert difficulty(simple.text) < difficulty(alice.text) < difficulty(hard.text)
