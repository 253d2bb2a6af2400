"""Characters as people type them, lines without leftovers."""

import re

_TYPED = {
    "‘": "'", "’": "'", "‚": "'", "‛": "'",
    "“": '"', "”": '"', "„": '"', "‟": '"',
    "‐": "-", "‑": "-", "‒": "-", "\u2e3a": "——", "\u2e3b": "———",
    "\u2028": "\n", "\u2029": "\n\n", "\x85": "\n",
}  # fmt: skip
"""Quotation marks, apostrophes and hyphens of typesetting, and what keyboards have for them."""

# Not U+200C and U+200D: Persian, Hindi and emoji are spelled with them.
_INVISIBLE = "\u00ad\u200b\u200e\u200f\u2060\u2061\u2062\u2063\u2064\ufeff\ufff9\ufffa\ufffb"
_CONTROLS = "".join(chr(code) for code in (*range(9), 11, 12, *range(14, 32), 127))
_SPACES = "\u00a0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2007\u2008\u202f\u205f\u3000"
_TABLE = _TYPED | dict.fromkeys(_SPACES, " ") | dict.fromkeys(_INVISIBLE + _CONTROLS, "")
# One character in fifty is odd: finding those is five times as fast as str.translate.
_ODD = re.compile(f"[{re.escape(''.join(_TABLE))}]")
# Typesetters put these between two quotation marks and before an ellipsis, where people put none.
_THIN = "\u2006\u2009\u200a"
_THIN_BY_MARKS = re.compile(f"(?<=[\"'—-])[{_THIN}]|[{_THIN}](?=[\"'…—,.:;!?-])")
_OTHER_THIN = re.compile(f"[{_THIN}]")
_LINE_ENDS = re.compile("\r\n?")
_TRAILING = re.compile("[ \t]+$", re.MULTILINE)
_BLANK_LINES = re.compile("\n{3,}")


def typed_characters(text: str) -> str:
    """The text with ASCII quotation marks, apostrophes, hyphens and spaces, and without characters
    that nobody sees: soft hyphens, word joiners, byte-order marks, controls. Dashes, ellipses,
    accents and other scripts stay."""
    if text.isascii() and text.isprintable():
        return text
    text = _ODD.sub(lambda match: _TABLE[match[0]], text)
    if any(thin in text for thin in _THIN):
        text = _OTHER_THIN.sub(" ", _THIN_BY_MARKS.sub("", text))
    return text


def tidy_lines(text: str) -> str:
    """Line feeds for line ends, no spaces before them, at most one blank line, none at the ends.

    Spaces at the start of a line stay, unless it is the first: they mean something in verse and
    in programs.
    """
    text = _TRAILING.sub("", _LINE_ENDS.sub("\n", text))
    return _BLANK_LINES.sub("\n\n", text).strip()


def cleaned(text: str) -> str:
    """What every text goes through before it is a document."""
    return tidy_lines(typed_characters(_LINE_ENDS.sub("\n", text)))


def paragraphs(text: str) -> list[str]:
    """The parts between blank lines."""
    return text.split("\n\n")
