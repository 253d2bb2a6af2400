"""What the terminal can show: its width, colour or none, and how wide a text is in it."""

import os
import re
import shutil
import sys
import unicodedata
from typing import TextIO

from bluejay.core.errors import UsageError

_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "cyan": "36"}
_PIPED_WIDTH = 80
_EIGHTHS = " ▏▎▍▌▋▊▉"
_STYLE_CODE = re.compile(r"\x1b\[\d+m")


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at the stream, as far as one can tell."""
    try:
        return stream.isatty()
    except ValueError:  # closed
        return False


def has_styles(stream: TextIO) -> bool:
    """Whether to send colours: to terminals that know them, unless NO_COLOR asks for none."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return is_terminal(stream) or bool(os.environ.get("FORCE_COLOR"))


def styled(text: str, style: str, stream: TextIO | None = None) -> str:
    """The text in that style (bold, dim, red, green, cyan), or as it is."""
    if not text or not has_styles(stream or sys.stdout):
        return text
    return f"\x1b[{_STYLES[style]}m{text}\x1b[0m"


def width() -> int:
    """Columns of the terminal; 80 where there is none and COLUMNS does not say."""
    return max(20, shutil.get_terminal_size((_PIPED_WIDTH, 24)).columns)


def can_show(text: str, stream: TextIO | None = None) -> bool:
    """Whether the stream's encoding has these characters."""
    encoding = (stream or sys.stdout).encoding or "ascii"
    try:
        text.encode(encoding)
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def display_width(text: str) -> int:
    """Columns that a text takes: two for wide East Asian characters, none for marks, styles."""
    return sum(
        0
        if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me", "Cf")
        else 2
        if unicodedata.east_asian_width(char) in "WF"
        else 1
        for char in _STYLE_CODE.sub("", text)
    )


def padded(text: str, columns: int, *, right: bool = False) -> str:
    """The text with spaces to that many columns, before it if `right`."""
    space = " " * max(0, columns - display_width(text))
    return space + text if right else text + space


def shortened(text: str, columns: int) -> str:
    """The text, cut to that many columns with an ellipsis."""
    if display_width(text) <= columns:
        return text
    end = "…" if can_show("…") else "."
    kept = ""
    for char in text:
        if display_width(kept + char) > columns - 1:
            break
        kept += char
    return kept + end


def harmless(text: str) -> str:
    """The text with control characters made visible: a model must not steer the terminal."""
    return "".join(
        char
        if char in "\n\t" or unicodedata.category(char) != "Cc"
        else char.encode("unicode_escape").decode()
        for char in text
    )


def bar(share: float, columns: int) -> str:
    """A bar of `share` (0 to 1) of that many columns, to an eighth of a column if possible."""
    if not can_show("█" + _EIGHTHS):
        return "#" * max(round(share * columns), share > 0)
    eighths = max(round(share * columns * 8), share > 0)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def argument_text(text: str, name: str) -> str:
    """A text that was typed, or all of stdin for `-`, less one line end that echo added.

    Raises UsageError for what is not UTF-8.
    """
    try:
        if text == "-":
            text = sys.stdin.buffer.read().decode()
            text = text.removesuffix("\n").removesuffix("\r")
        text.encode()
    except UnicodeError:
        raise UsageError(f"The {name} is not UTF-8 text: convert it first.") from None
    return text
