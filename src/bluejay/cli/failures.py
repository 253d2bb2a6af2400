"""From an exception to one sentence and an exit code."""

import errno
from dataclasses import dataclass

from bluejay.core.errors import (
    BluejayError,
    DataError,
    DiskError,
    MemoryLimitError,
    UsageError,
)

# What a shell reports for a process that SIGINT ended.
EXIT_INTERRUPTED = 130
EXIT_UNEXPECTED = 1
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EIO)
# Packages that an extra brings; `hub` is looked after where models are fetched.
_EXTRAS = {
    "serve": ("h11", "llguidance", "msgspec", "prometheus_client", "segno", "starlette", "uvicorn"),
    "train": ("matplotlib", "optax", "zstandard"),
}


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What the user is told, and what the process ends with."""

    sentence: str
    exit_code: int


def describe(error: BaseException) -> Failure:
    """The sentence and the exit code of an error of ours, of the system, of JAX, or unforeseen."""
    if isinstance(error, BluejayError):
        return Failure(sentence=_one_line(str(error)), exit_code=error.exit_code)
    if isinstance(error, MemoryError) or _is_device_exhausted(error):
        return Failure(
            sentence=f"Memory ran out ({_one_line(str(error)) or 'MemoryError'}): close other "
            "programs, shorten the prompt, or choose a smaller model (`bluejay doctor` says which "
            "fit).",
            exit_code=MemoryLimitError.exit_code,
        )
    if isinstance(error, OSError) and error.errno in (*_FULL, *_REFUSED):
        place = f" at {error.filename}" if error.filename else ""
        remedy = "make room there" if error.errno in _FULL else "choose another disk"
        return Failure(
            sentence=f"The disk{place} refused the write ({error.strerror}): {remedy} and run "
            "the command again.",
            exit_code=DiskError.exit_code,
        )
    if isinstance(error, PermissionError | FileNotFoundError | IsADirectoryError):
        place = f"{error.filename}: " if error.filename else ""
        return Failure(
            sentence=f"{place}{error.strerror}. Check the path and its permissions.",
            exit_code=DataError.exit_code,
        )
    if isinstance(error, ModuleNotFoundError) and (extra := _extra_with(error.name)):
        return Failure(
            sentence=f"This needs the package {error.name}, which is not installed: run "
            f"`pip install 'bluejay[{extra}]'`.",
            exit_code=UsageError.exit_code,
        )
    return Failure(
        sentence=f"Unexpected {type(error).__name__}: {_one_line(str(error))} "
        "(this is a defect: run again with --debug for the traceback, and report it).",
        exit_code=EXIT_UNEXPECTED,
    )


def _extra_with(module: str | None) -> str | None:
    name = (module or "").split(".")[0]
    return next((extra for extra, packages in _EXTRAS.items() if name in packages), None)


def _is_device_exhausted(error: BaseException) -> bool:
    # By name, so that telling errors apart does not import JAX.
    is_runtime_error = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return is_runtime_error and "RESOURCE_EXHAUSTED" in str(error)


def _one_line(text: str, limit: int = 1200) -> str:
    words = " ".join(text.split())
    return words if len(words) <= limit else words[: limit - 1] + "…"
