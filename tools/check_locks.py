"""Fail unless every lock is all names, versions and hashes, without addresses, and complete."""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

REQUIREMENT = re.compile(r"([a-z0-9][a-z0-9._-]*)==[^\s;]+( ; .+)?")
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")
# What each lock is compiled from: extras and dependency groups of pyproject.toml.
LOCKS = {
    "requirements.lock": ["hub", "train", "build"],
    "requirements-dev.lock": ["hub", "train", "dev"],
    "requirements-golden.lock": ["golden"],
    "requirements-clients.lock": ["clients"],
}
# Of programs that only talk to this package.
WITHOUT_THE_PACKAGE = {"requirements-clients.lock"}


def read_lock(text: str) -> tuple[set[str], list[str]]:
    """The locked names, and what is wrong with the text."""
    names, problems = set(), []
    logical_lines = re.sub(r"\\\n", " ", text).splitlines()
    for line in logical_lines:
        if "://" in line or re.search(r"(?<![\w.-])/\w", line):
            problems.append(f"an address or a path: {line.strip()[:80]}")
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        requirement, *hashes = re.split(r"\s+(?=--hash=)", line.strip())
        match = REQUIREMENT.fullmatch(requirement.strip())
        if match is None:
            problems.append(f"not a pinned requirement: {requirement[:80]}")
            continue
        names.add(match[1])
        if not hashes or not all(HASH.fullmatch(h.strip()) for h in hashes):
            problems.append(f"without sha256 hashes: {requirement[:80]}")
    return names, problems


def asked_for(project: dict[str, Any], parts: list[str], *, with_package: bool = True) -> set[str]:
    """Names that pyproject.toml asks for in these extras and groups, and in its dependencies."""
    extras = project["project"]["optional-dependencies"]
    groups = project["dependency-groups"]
    wanted: list[Any] = [*project["project"]["dependencies"]] if with_package else []
    for part in parts:
        wanted += extras.get(part, []) + groups.get(part, [])
    names = set()
    for item in wanted:
        if isinstance(item, dict):
            names |= asked_for(project, [item["include-group"]], with_package=with_package)
        else:
            name = re.split(r"[\s<>=!~;\[]", item, maxsplit=1)[0]
            names.add(re.sub(r"[-_.]+", "-", name).lower())
    return names


def main() -> int:
    project = tomllib.loads(Path("pyproject.toml").read_text())
    failed = False
    for lock, parts in LOCKS.items():
        names, problems = read_lock(Path(lock).read_text())
        wanted = asked_for(project, parts, with_package=lock not in WITHOUT_THE_PACKAGE)
        problems += [f"{n} is missing: run `make lock`" for n in wanted - names]
        for problem in problems:
            print(f"{lock}: {problem}")
        failed |= bool(problems)
        print(f"{lock}: {len(names)} packages")
    return failed


if __name__ == "__main__":
    sys.exit(main())
