"""Mapped files while somebody reads them: they may be replaced by renaming, and not be changed.

What was cut ends the process when it is touched; what was overwritten is read as it is.
"""

import itertools
import mmap
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from bluejay.checkpoints.refusal import refusal
from bluejay.core.errors import CheckpointError
from bluejay.kernels.file_guard import guard_file

_CUT = (
    "the file was cut, or its disk cannot be read, while it was in use: restore it and start again;"
    " replace files by renaming, never in place"
)


class _File(NamedTuple):
    path: Path
    identity: tuple[int, int]
    state: tuple[int, int]


# By numbers of their own. Each operation on it is a single one of Python's: a lock could be asked
# for by a finalizer while its own thread has it.
_in_use: dict[int, _File] = {}
_numbers = itertools.count()


def use_file(
    path: Path, found: os.stat_result, *, mapping: mmap.mmap, address: int
) -> Callable[[], None]:
    """The file, as it was `found`, is mapped to that address: it is in use until the mapping is let
    go, or until what is returned is called."""
    number = next(_numbers)
    _in_use[number] = _File(Path(os.path.abspath(path)), _identity(found), _state(found))
    unguard = guard_file(
        address,
        len(mapping),
        sentence=f"bluejay: {refusal(path, _CUT)}\n",
        exit_code=CheckpointError.exit_code,
    )
    end = weakref.finalize(mapping, _let_go, number, unguard)
    end.atexit = False  # until the very end a file may be cut
    return end


def changed_files() -> list[Path]:
    """Files in use that are no longer as they were when they were opened.

    A file that was replaced by another of its name, or removed, is read as it was.
    """
    return [file.path for file in _in_use.copy().values() if _is_changed(file)]


def _is_changed(file: _File) -> bool:
    try:
        found = os.stat(file.path)
    except OSError:
        return False
    return _identity(found) == file.identity and _state(found) != file.state


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino


def _state(found: os.stat_result) -> tuple[int, int]:
    return found.st_size, found.st_mtime_ns


def _let_go(number: int, unguard: Callable[[], None] | None) -> None:
    _in_use.pop(number, None)
    if unguard is not None:
        unguard()
