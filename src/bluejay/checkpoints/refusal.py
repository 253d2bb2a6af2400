"""How a checkpoint reader says no: one line, whatever the file put into its names."""

from collections.abc import Sequence
from pathlib import Path

from bluejay.core.errors import CheckpointError

_LONGEST_QUOTE = 80
_MOST_LISTED = 5


def quoted(text: object) -> str:
    """Text from a file, safe to print: escaped, in quotes, at most about 80 characters."""
    if isinstance(text, str) and len(text) > _LONGEST_QUOTE:
        text = text[: _LONGEST_QUOTE - 3] + "..."
    shown = repr(text) if isinstance(text, str | int | float | bool | None) else type(text).__name__
    return shown if len(shown) <= 6 * _LONGEST_QUOTE else shown[:_LONGEST_QUOTE] + "..."


def listed(items: Sequence[str], *, most: int = _MOST_LISTED) -> str:
    """The first few items and how many more there are."""
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown} and {len(items) - most} more"


def refusal(path: Path, reason: str) -> CheckpointError:
    """The error for `path`; control characters in either part are escaped to keep it one line."""
    return CheckpointError(_one_line(f"{path}: {reason}"))


def has_control_characters(name: str) -> bool:
    """True for names that could move a terminal's cursor or end a C string (C0, DEL, C1)."""
    return any(ord(char) < 32 or 127 <= ord(char) < 160 for char in name)


def _one_line(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
