"""How much memory this machine has, and what this process takes of it."""

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")


def total_bytes() -> int:
    """Installed memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int:
    """Memory that can be taken without swapping: Linux's own estimate, else all of it."""
    for line in _MEMINFO.read_text().splitlines() if _MEMINFO.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return total_bytes()
