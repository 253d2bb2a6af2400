"""Large pages for processes that train: glibc takes the wish only when a process starts.

A step allocates and frees hundreds of megabytes; with pages of 2 MiB the kernel hands them out in a
fraction of the time (docs/lab-book.md, 2026-11-25: 1.2 to 1.3 times the tokens per second).
"""

import os
import platform
import sys
from collections.abc import Sequence

# https://sourceware.org/glibc/manual/latest/html_node/Memory-Allocation-Tunables.html
_VARIABLE, _TUNABLE = "GLIBC_TUNABLES", "glibc.malloc.hugetlb"
_COMMANDS = ("train", "resume")


def restart_with_huge_pages(argv: Sequence[str]) -> None:
    """Replace this process by itself with the tunable set, if the command trains; keeps the pid.

    Nothing happens where it is set already, to whatever value, or where glibc is not the C library.
    """
    tunables = os.environ.get(_VARIABLE, "")
    trains = next((word for word in argv if not word.startswith("-")), "") in _COMMANDS
    if not trains or _TUNABLE in tunables or platform.libc_ver()[0] != "glibc":
        return
    os.environ[_VARIABLE] = f"{tunables}:{_TUNABLE}=1" if tunables else f"{_TUNABLE}=1"
    os.execv(sys.executable, sys.orig_argv)
