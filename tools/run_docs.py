"""Run every bash and python block of the given Markdown files, one empty folder per file.

A line `<!-- not run: REASON -->` right above a block leaves it out, and the reason is printed.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

BLOCK = re.compile(
    r"(?:<!-- not run: (?P<reason>[^\n]+?) -->\n+)?"
    r"^```(?P<language>bash|python)\n(?P<code>.*?)^```$",
    re.M | re.S,
)
INTERPRETERS = {
    "bash": ["bash", "-euo", "pipefail", "-c"],
    "python": [sys.executable, "-c"],
}


def markdown_files(arguments: list[str]) -> Iterator[Path]:
    for path in map(Path, arguments):
        yield from sorted(path.rglob("*.md")) if path.is_dir() else [path]


def run_file(path: Path, environment: dict[str, str]) -> int:
    """The number of blocks that failed; the blocks of one file see each other's files."""
    text, num_failed = path.read_text(), 0
    with tempfile.TemporaryDirectory() as folder:
        for block in BLOCK.finditer(text):
            place = f"{path}:{text.count(chr(10), 0, block.start('code')) + 1}"
            if block["reason"]:
                print(f"-- {place} not run: {block['reason']}")
                continue
            print(f"== {place}\n{block['code']}", end="", flush=True)
            start = time.perf_counter()
            command = [*INTERPRETERS[block["language"]], block["code"]]
            code = subprocess.run(command, cwd=folder, env=environment, check=False).returncode
            print(f"-- {time.perf_counter() - start:.1f} s, exit code {code}", flush=True)
            num_failed += code != 0
    return num_failed


def main(arguments: list[str]) -> int:
    # The commands are those of this environment, as after activating it.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    environment = os.environ | {"PATH": path}
    num_failed = sum(run_file(path, environment) for path in markdown_files(arguments))
    print(f"{num_failed} blocks failed" if num_failed else "every block ran")
    return bool(num_failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
