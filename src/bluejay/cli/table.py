"""Rows in aligned columns, as wide as the terminal and no wider."""

import sys
import textwrap
from collections.abc import Sequence

from bluejay.cli.terminal import display_width, is_terminal, padded, styled, width

_GAP = "  "
_NARROWEST = 18


def print_table(
    rows: Sequence[Sequence[str]],
    *,
    header: Sequence[str] = (),
    right: Sequence[int] = (),
    flexible: int | None = None,
    indent: str = "",
) -> None:
    """Print rows; columns in `right` are right-aligned, the `flexible` one is wrapped to fit.

    A row that cannot fit goes below its first cell, cell by cell. Into a pipe every row is one
    line, however long.
    """
    if not rows:
        return
    lines = [list(header), *map(list, rows)] if header else list(map(list, rows))
    widths = [max(display_width(row[i]) for row in lines) for i in range(len(lines[0]))]
    limit = width() if is_terminal(sys.stdout) else None
    total = len(indent) + sum(widths) + len(_GAP) * (len(widths) - 1)
    if limit is not None and total > limit:
        rest = 0 if flexible is None else limit - (total - widths[flexible])
        if flexible is None or rest < _NARROWEST:
            _print_stacked(rows, header, limit, indent)
            return
        widths[flexible] = rest
    if header:
        print(indent + styled(_line(header, widths, right), "dim"))
    for row in rows:
        _print_row(row, widths, right, flexible, indent)


def _print_row(
    row: Sequence[str],
    widths: list[int],
    right: Sequence[int],
    flexible: int | None,
    indent: str,
) -> None:
    if flexible is None or display_width(row[flexible]) <= widths[flexible]:
        print(indent + _line(row, widths, right))
        return
    parts = textwrap.wrap(row[flexible], widths[flexible]) or [""]
    for number, part in enumerate(parts):
        cells = list(row) if number == 0 else [""] * len(row)
        cells[flexible] = part
        print(indent + _line(cells, widths, right))


def _line(cells: Sequence[str], widths: Sequence[int], right: Sequence[int]) -> str:
    return _GAP.join(
        padded(cell, columns, right=index in right)
        for index, (cell, columns) in enumerate(zip(cells, widths, strict=True))
    ).rstrip()


def _print_stacked(
    rows: Sequence[Sequence[str]], header: Sequence[str], limit: int, indent: str
) -> None:
    """The first cell on a line of its own, the others below it, each after its header."""
    for first, *others in rows:
        print(indent + first)
        names = list(header[1:]) or [""] * len(others)
        cells = [f"{name} {cell}".strip() for name, cell in zip(names, others, strict=True) if cell]
        # A space that must not break: a header stays with its cell where both fit on a line.
        text = ", ".join(cell.strip().replace(" ", "\xa0") for cell in cells)
        for line in textwrap.wrap(text, max(_NARROWEST, limit - len(indent) - 3)):
            print(f"{indent}  {line}".replace("\xa0", " "))


def print_text(text: str, *, style: str = "") -> None:
    """A paragraph, wrapped to the terminal."""
    lines = textwrap.wrap(text, width() - 1) if is_terminal(sys.stdout) else [text]
    for line in lines:
        print(styled(line, style) if style else line)
