"""Bluejay's own cache of pulled models: where it lies, what is in it, and how things get in.

models/NAME/     a finished model; it appears by one rename, whole and synced, or not at all
partial/NAME/    what an unfinished pull left that the next one can use; `attempt-*` is swept
locks/NAME.lock  held (flock) by the one process that works on NAME; its text is the pid
"""

import errno
import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from bluejay.checkpoints.catalogue import is_name
from bluejay.core.errors import CheckpointError, DiskError, UsageError

ATTEMPT_PREFIX = "attempt-"
SPACE_MARGIN = 16 * 2**20
"""Kept free on top of what a pull needs: folders, manifests and what else writes meanwhile."""


@dataclass(frozen=True, kw_only=True)
class CachedModel:
    """A finished model in the cache."""

    name: str
    path: Path
    num_bytes: int


def cache_root() -> Path:
    """`BLUEJAY_CACHE`, else `XDG_CACHE_HOME/bluejay`, else `~/.cache/bluejay` (macOS too)."""
    chosen = os.environ.get("BLUEJAY_CACHE")
    if chosen:
        return Path(os.path.abspath(os.path.expanduser(chosen)))
    shared = os.environ.get("XDG_CACHE_HOME")
    # The XDG specification has relative paths ignored.
    if shared and os.path.isabs(shared):
        return Path(shared) / "bluejay"
    home = os.path.expanduser("~")
    if not os.path.isabs(home):
        raise DiskError("This user has no home folder to cache models in: set BLUEJAY_CACHE.")
    return Path(home) / ".cache" / "bluejay"


def cached_models() -> list[CachedModel]:
    """The finished models in the cache, by name."""
    folder = cache_root() / "models"
    if not folder.is_dir():
        return []
    return [
        CachedModel(name=path.name, path=path, num_bytes=folder_bytes(path))
        for path in sorted(folder.iterdir())
        if is_name(path.name) and path.is_dir()
    ]


def cached_model(name: str) -> Path | None:
    """The folder of the finished model `name`, if it is in the cache."""
    path = _inside("models", name)
    return path if path.is_dir() else None


def cache_bytes() -> int:
    """What the whole cache takes on disk, unfinished pulls included."""
    return folder_bytes(cache_root())


def folder_bytes(folder: Path) -> int:
    """Sum of the sizes of the regular files under `folder`; links are not followed."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            # A file may vanish between listing and asking while another process works.
            with suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def remove(name: str) -> int:
    """Delete the model `name`, and what an unfinished pull of it left, from the cache.

    Returns the bytes that came free. Refuses what is not in the cache, and a model that another
    process is pulling.
    """
    if not is_name(name):
        raise UsageError(f"{name[:80]!r} is no model name; only models in the cache are removed.")
    doomed = [path for path in (_inside("models", name), _inside("partial", name)) if _there(path)]
    if not doomed:
        raise UsageError(
            f"{name} is not in the cache at {cache_root()}: there is nothing to remove."
        )
    for path in doomed:
        if path.is_symlink():
            raise UsageError(f"{path} is a link, nothing that a pull made: remove it by hand.")
    with writing_to_cache(), exclusive(name, on_wait=_refuse_to_wait(name)):
        freed = sum(folder_bytes(path) for path in doomed)
        # Renamed first: a model that is half deleted must not look like one that is there.
        grave = Path(tempfile.mkdtemp(prefix=ATTEMPT_PREFIX, dir=_made(_inside("partial", name))))
        model = _inside("models", name)
        if model.is_dir():
            os.rename(model, grave / "model")
        shutil.rmtree(_inside("partial", name))
    return freed


@contextmanager
def exclusive(name: str, *, on_wait: Callable[[int | None], None]) -> Iterator[None]:
    """Hold the lock of `name`; while another process has it, wait after `on_wait(its pid)`.

    The system releases the lock when a process ends, however it ends.
    """
    path = _made(cache_root() / "locks") / f"{name}.lock"
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait(_holder(file))
            fcntl.flock(file, fcntl.LOCK_EX)
        _write_holder(file, str(os.getpid()))
        try:
            yield
        finally:
            _write_holder(file, "")


def partial_folder(name: str) -> Path:
    """Where an unfinished pull of `name` keeps what the next one can use; made if missing."""
    return _made(_inside("partial", name))


def attempt_folder(name: str) -> Path:
    """A fresh folder for one attempt, on the disk of the cache; a later sweep may delete it."""
    return Path(tempfile.mkdtemp(prefix=ATTEMPT_PREFIX, dir=partial_folder(name)))


def publish(finished: Path, name: str) -> Path:
    """Make the folder `finished` the cached model `name`: synced to disk, then one rename."""
    sync_folder(finished)
    # mkdtemp makes folders for their owner only; a shared cache is read by others.
    finished.chmod(0o755)
    destination = _made(cache_root() / "models") / name
    os.rename(finished, destination)
    _sync(destination.parent)
    return destination


def sync_folder(folder: Path) -> None:
    """Force every file and folder under `folder` to the disk."""
    for parent, _, names in os.walk(folder, topdown=False):
        for name in names:
            _sync(Path(parent, name))
        _sync(Path(parent))


def sweep(name: str) -> None:
    """Delete what earlier attempts at `name` left behind; the caller holds its lock."""
    for attempt in _inside("partial", name).glob(f"{ATTEMPT_PREFIX}*"):
        shutil.rmtree(attempt, ignore_errors=True)


def sweep_others() -> None:
    """Delete the left-behind attempts at every model that no process works on."""
    folder = cache_root() / "partial"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if is_name(path.name) and path.is_dir():
            with suppress(_BusyError), exclusive(path.name, on_wait=_raise_busy):
                sweep(path.name)
                with suppress(OSError):  # it still holds something a pull can use
                    path.rmdir()


def require_space(folder: Path, needed: int, *, purpose: str) -> None:
    """DiskError unless `needed` bytes, and a margin, are free where `folder` is (to be)."""
    free = shutil.disk_usage(_first_existing(folder)).free
    if free < needed + SPACE_MARGIN:
        raise DiskError(
            f"{purpose} needs {needed:,} bytes ({size_text(needed)}) in {folder}, where "
            f"{free:,} ({size_text(free)}) are free: make room there, or choose another disk "
            "with BLUEJAY_CACHE (HF_HOME for models from the hub)."
        )


@contextmanager
def writing_to_cache() -> Iterator[None]:
    """Turn the system's refusals to write into one DiskError that says where and what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(_first_existing(cache_root())).free
            raise DiskError(
                f"The disk of {cache_root()} is full ({size_text(free)} free): make room, or "
                "choose another disk with BLUEJAY_CACHE."
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EIO):
            raise DiskError(
                f"The cache at {cache_root()} cannot be written ({error.strerror}): correct its "
                "permissions, or choose another folder with BLUEJAY_CACHE."
            ) from error
        raise


def size_text(num_bytes: int) -> str:
    """A size for people, in decimal units with three digits at most: 98 MB, 1.52 GB."""
    if num_bytes < 1000:
        return f"{num_bytes} bytes"
    size = float(num_bytes)
    for unit in ("kB", "MB", "GB", "TB"):
        size /= 1000
        if size < 999.5 or unit == "TB":
            break
    digits = 0 if size >= 99.5 or unit == "kB" else 1 if size >= 9.95 else 2
    text = f"{size:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text} {unit}"


class _BusyError(Exception):
    """The lock is held by another process."""


def _raise_busy(_pid: int | None) -> None:
    raise _BusyError


def _refuse_to_wait(name: str) -> Callable[[int | None], None]:
    def refuse(pid: int | None) -> None:
        raise CheckpointError(f"{name} is being pulled by process {pid or '?'}: stop that first.")

    return refuse


def _inside(kind: str, name: str) -> Path:
    assert is_name(name), name
    return cache_root() / kind / name


def _there(path: Path) -> bool:
    return path.is_symlink() or path.is_dir()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _first_existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.parent
    return folder


def _holder(file: IO[str]) -> int | None:
    file.seek(0)
    text = file.read(20).strip()
    return int(text) if text.isascii() and text.isdigit() else None


def _write_holder(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
