"""Fail on every skipped test that no line of tests/allowed_skips.txt allows.

A line is `PATTERN  # REASON`; the pattern is matched against `file::test` with shell wildcards.
"""

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

ALLOWED = Path("tests/allowed_skips.txt")
REPORTS = Path(".cache/reports")


def allowed_patterns() -> list[str]:
    patterns = []
    for number, line in enumerate(ALLOWED.read_text().splitlines(), start=1):
        pattern, _, reason = (part.strip() for part in line.partition("#"))
        if pattern and not reason:
            sys.exit(f"{ALLOWED}:{number}: {pattern} is allowed without a reason")
        if pattern:
            patterns.append(pattern)
    return patterns


def skipped(report: Path) -> Iterator[tuple[str, str]]:
    """Name and message of every test that was skipped or failed as expected."""
    for case in ElementTree.parse(report).iter("testcase"):
        skip = case.find("skipped")
        if skip is not None:
            yield f"{case.get('classname', '')}::{case.get('name')}", skip.get("message", "")


def main() -> int:
    reports = sorted(REPORTS.glob("*.xml"))
    if not reports:
        sys.exit(f"no test report in {REPORTS}: run `make test` first")
    patterns = allowed_patterns()
    unlisted = [
        (name, message)
        for report in reports
        for name, message in skipped(report)
        if not any(fnmatchcase(name, pattern) for pattern in patterns)
    ]
    for name, message in unlisted:
        print(f"skipped, and not listed in {ALLOWED}: {name} ({message})", file=sys.stderr)
    return bool(unlisted)


if __name__ == "__main__":
    sys.exit(main())
