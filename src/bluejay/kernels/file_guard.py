"""What the native library says before a mapped file that was cut ends the process (SIGBUS).

Starts without JAX: files are opened before anything is computed.
"""

import ctypes
import functools
from collections.abc import Callable
from functools import partial

from bluejay.kernels.library_file import is_cut_short, library_file, wish


def guard_file(
    address: int, num_bytes: int, *, sentence: str, exit_code: int
) -> Callable[[], None] | None:
    """From now on, whoever touches one of these bytes and cannot have it ends the process with the
    sentence on stderr and the exit code.

    What is returned ends that, and is to be called when the bytes are unmapped. None where nothing
    is guarded: without the library, and beyond 64 files.
    """
    functions = _functions()
    if functions is None:
        return None
    number = functions.bluejay_guard_file(
        ctypes.c_void_p(address),
        ctypes.c_int64(num_bytes),
        sentence.encode("utf-8", "backslashreplace"),
        exit_code,
    )
    return None if number < 0 else partial(_forget, functions, number)


def _forget(functions: ctypes.CDLL, number: int) -> None:
    functions.bluejay_forget_file(number)


@functools.cache
def _functions() -> ctypes.CDLL | None:
    file = library_file()
    if wish() == "off" or file is None:
        return None
    try:
        if is_cut_short(file):
            return None
        functions = ctypes.CDLL(str(file))
        _ = functions.bluejay_guard_file, functions.bluejay_forget_file
    except (OSError, AttributeError):
        return None  # `library_status` says why
    return functions
