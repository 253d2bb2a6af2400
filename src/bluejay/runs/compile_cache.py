"""Compiled programs kept between runs."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import jax
from filelock import FileLock, Timeout

from bluejay.checkpoints.model_cache import cache_root

# Programs of a few models; the least recently used go first.
_MAX_BYTES = 1 << 30
_LOCK_SECONDS = 10.0


def compile_cache_folder() -> Path:
    """`JAX_COMPILATION_CACHE_DIR` where that is set, else a folder in Bluejay's cache."""
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(chosen) if chosen else cache_root() / "compiled"


def configure_compile_cache() -> None:
    """Keep every compiled program, also those that compile fast and those that are small.

    A user's own settings of JAX stay as they are.
    """
    remove_torn_entries(compile_cache_folder())
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    jax.config.update("jax_compilation_cache_dir", str(compile_cache_folder()))
    jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)


def remove_torn_entries(folder: Path) -> None:
    """Delete entries of which only one of the two files is there.

    JAX writes an entry and then when it was last used; a process killed between the two leaves an
    entry over which every later write of any process stumbles.
    """
    if not any(_torn_entries(folder)):
        return
    with suppress(OSError, Timeout), FileLock(folder / ".lockfile", timeout=_LOCK_SECONDS):
        # Looked at again: another process may just have finished what it was writing.
        for entry in _torn_entries(folder):
            entry.unlink(missing_ok=True)


def _torn_entries(folder: Path) -> Iterator[Path]:
    names = {path.name for path in folder.glob("*-cache")} if folder.is_dir() else set()
    used = {path.name.removesuffix("-atime") for path in folder.glob("*-atime")} if names else set()
    yield from (folder / name for name in names if name.removesuffix("-cache") not in used)
