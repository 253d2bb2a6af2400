"""Fail on functions over 60 lines anywhere and on package files over 400."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import median

MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 400
FOLDERS = ("src", "tests", "tools", "benchmarks")


def function_lengths(path: Path) -> Iterator[tuple[str, int, int]]:
    """Name, first line and number of lines of every function, docstring and decorators included."""
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            yield node.name, first, (node.end_lineno or first) - first + 1


def main() -> int:
    problems, lengths = [], []
    for path in sorted(p for folder in FOLDERS for p in Path(folder).rglob("*.py")):
        num_lines = len(path.read_bytes().splitlines())
        if path.parts[0] == "src" and num_lines > MAX_FILE_LINES:
            problems.append(f"{path}: {num_lines} lines, {MAX_FILE_LINES} is the limit")
        for name, line, length in function_lengths(path):
            if path.parts[0] == "src":
                lengths.append(length)
            if length > MAX_FUNCTION_LINES:
                problems.append(
                    f"{path}:{line}: {name} has {length} lines, {MAX_FUNCTION_LINES} is the limit"
                )
    print("\n".join(problems) or f"lengths: {len(lengths)} functions, median {median(lengths):g}")
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
