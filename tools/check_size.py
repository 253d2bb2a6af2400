"""Fail when the tracked files together weigh more than 32 MiB; name the heaviest."""

import subprocess
import sys
from pathlib import Path

LIMIT = 32 * 2**20


def main() -> int:
    listed = subprocess.run(["git", "ls-files", "-z"], check=True, capture_output=True).stdout
    files = [Path(name) for name in listed.decode().split("\0") if name]
    sizes = {path: path.lstat().st_size for path in files if path.exists()}
    total = sum(sizes.values())
    print(f"tracked files: {total / 2**20:.1f} MiB of {LIMIT / 2**20:.0f}")
    if total <= LIMIT:
        return 0
    for path in sorted(sizes, key=sizes.__getitem__, reverse=True)[:10]:
        print(f"  {sizes[path] / 2**20:6.1f} MiB  {path}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
