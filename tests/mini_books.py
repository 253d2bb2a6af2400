"""Books as Standard Ebooks lays them out, small and hand-written, as folders and archives."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import zstandard

LICENCE = (
    "The creators of this ebook dedicate their contributions to the worldwide public domain via "
    "the terms in the [CC0 1.0 Universal Public Domain Dedication](https://example.org/)."
)

_PAGE = """<?xml version="1.0" encoding="utf-8"?>
<html xmlns="http://www.w3.org/1999/xhtml" xmlns:epub="http://www.idpf.org/2007/ops">
	<head><title>not text</title></head>
	<body epub:type="bodymatter z3998:fiction">
{body}
	</body>
</html>
"""

_PACKAGE = """<?xml version="1.0" encoding="utf-8"?>
<package xmlns="http://www.idpf.org/2007/opf" version="3.0">
	<metadata xmlns:dc="http://purl.org/dc/elements/1.1/">
		<dc:identifier id="uid">https://example.org/ebooks/{name}</dc:identifier>
		<dc:title id="title-short">Short</dc:title>
		<meta property="title-type" refines="#title-short">short</meta>
		<dc:title id="title">The Title of {name}</dc:title>
		<meta property="title-type" refines="#title">main</meta>
		<dc:creator id="author-1">Ann Author</dc:creator>
		<dc:creator id="author-2">Bo Writer</dc:creator>
		<dc:language>{language}</dc:language>
	</metadata>
	<manifest>
{items}
	</manifest>
	<spine>
{references}
	</spine>
</package>
"""


def page(body: str) -> bytes:
    """A page with that inside its body."""
    return _PAGE.format(body=body).encode()


def chapter(title: str, *paragraphs: str) -> bytes:
    """A page with a heading and paragraphs."""
    prose = "\n".join(f"\t\t\t<p>{text}</p>" for text in paragraphs)
    section = (
        f'<section epub:type="chapter">\n<h2 epub:type="title">{title}</h2>\n{prose}</section>'
    )
    return page(section)


def book_files(
    name: str,
    pages: Mapping[str, bytes],
    *,
    spine: list[str] | None = None,
    language: str = "en-GB",
) -> dict[str, bytes]:
    """The files of a book by their paths; the spine is the pages in the order given."""
    order = list(pages) if spine is None else spine
    package = _PACKAGE.format(
        name=name,
        language=language,
        items="\n".join(f'<item href="text/{p}" id="{p}"/>' for p in {*pages, *order}),
        references="\n".join(f'<itemref idref="{p}"/>' for p in order),
    )
    files = {f"{name}/src/epub/text/{p}": data for p, data in pages.items()}
    files[f"{name}/src/epub/content.opf"] = package.encode()
    files[f"{name}/LICENSE.md"] = LICENCE.encode()
    return files


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """The files below a folder."""
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def tar_bytes(files: Mapping[str, bytes]) -> bytes:
    """An archive of them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def write_tar_zst(path: Path, files: Mapping[str, bytes]) -> Path:
    """An archive of them, compressed."""
    path.write_bytes(zstandard.ZstdCompressor().compress(tar_bytes(files)))
    return path
