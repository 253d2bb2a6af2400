"""Seconds from the shell until Bluejay answers: import and help, beside Python alone.

The promises: `import bluejay` in under 100 ms, `bluejay --help` in under 300 ms.
"""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from statistics import median

COMMANDS = {
    "python alone": [sys.executable, "-c", "pass"],
    "import bluejay": [sys.executable, "-c", "import bluejay"],
    "bluejay --help": [str(Path(sys.executable).parent / "bluejay"), "--help"],
    "import jax": [sys.executable, "-c", "import jax"],
}


def seconds(command: list[str], *, repeats: int = 7) -> float:
    """The median of some runs; the first, which fills the disk cache, does not count."""
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - start)
    return median(times[1:])


def main() -> None:
    print(
        f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}"
    )
    for name, command in COMMANDS.items():
        print(f"{name:16} {1000 * seconds(command):6.0f} ms")


if __name__ == "__main__":
    main()
