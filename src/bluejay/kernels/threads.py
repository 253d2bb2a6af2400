"""How many threads compute: those of the native kernels, and XLA's before it has started."""

import os

from bluejay.core.errors import UsageError
from bluejay.kernels.library import library

VARIABLE = "BLUEJAY_THREADS"
# XLA asks it for the size of its pool, once, when the first array is made.
_XLA_VARIABLE = "NPROC"


def usable_cores() -> int:
    """Cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def use_threads(count: int | None = None) -> None:
    """Compute with so many threads in this whole process; results stay the same to the bit.

    None takes BLUEJAY_THREADS, and changes nothing without it. Waits for a kernel that runs. XLA
    follows only if no array has been made yet. Raises UsageError unless the count lies between 1
    and the usable cores.
    """
    wanted = _from_environment() if count is None else _checked(count, "threads")
    if wanted is None:
        return
    os.environ[_XLA_VARIABLE] = str(wanted)
    found = library()
    if found is not None:
        found.set_num_threads(wanted)


def _from_environment() -> int | None:
    text = os.environ.get(VARIABLE, "").strip()
    if not text:
        return None
    return _checked(int(text) if text.isdecimal() else text, VARIABLE)


def _checked(count: int | str, name: str) -> int:
    cores = usable_cores()
    if isinstance(count, str) or not 1 <= count <= cores:
        raise UsageError(
            f"{name} is {count!r}, but it must be a whole number from 1 to {cores}, the cores that "
            "this process may use."
        )
    return count
