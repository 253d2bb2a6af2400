"""How much memory this machine has, what this process takes of it, and since when it runs."""

import os
import threading
import time
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_OWN = Path("/proc/self")
# Between two looks: a copy of half a gigabyte takes a hundred of them.
_LOOK_SECONDS = 0.002


def total_bytes() -> int:
    """Installed memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def available_bytes() -> int:
    """Memory that can be taken without swapping: Linux's own estimate, else all of it."""
    for line in _MEMINFO.read_text().splitlines() if _MEMINFO.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return total_bytes()


def peak_resident_bytes() -> int | None:
    """The most that this process has had in memory, mapped files included; None where the system
    does not tell."""
    return _own_bytes("VmHWM")


def anonymous_bytes() -> int | None:
    """What this process has in memory now that no file backs; None where the system does not
    tell."""
    return _own_bytes("RssAnon")


class PeakAnonymous:
    """The most anonymous memory this process has inside a `with` block, looked at all the time:
    Linux keeps no such peak. `peak` in bytes is None where the system does not tell."""

    def __init__(self) -> None:
        self.peak = anonymous_bytes()
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "PeakAnonymous":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        self._look()

    def _watch(self) -> None:
        while not self._is_over.wait(_LOOK_SECONDS):
            self._look()

    def _look(self) -> None:
        taken = anonymous_bytes()
        if taken is not None:
            self.peak = max(taken, self.peak or 0)


def process_seconds() -> float | None:
    """Since this process was started, to a hundredth; None where the system does not tell."""
    try:
        # The name in parentheses may hold spaces; the start is field 22 (man 5 proc).
        started = (_OWN / "stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(started) / ticks


def _own_bytes(name: str) -> int | None:
    try:
        lines = (_OWN / "status").read_text().splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else None
