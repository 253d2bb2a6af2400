"""The native library: found, loaded once, and its operations made known to JAX."""

import ctypes
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from bluejay.kernels.library_file import (
    VARIABLE,
    is_cut_short,
    is_file_wished,
    library_file,
    wish,
)

INSTRUCTION_SETS = ("portable", "avx2", "avx512", "avx512_bf16", "neon")
_TARGETS = (
    "bluejay_matmul",
    "bluejay_layer_norm",
    "bluejay_layer_norm_backward",
    "bluejay_cross_entropy",
    "bluejay_cross_entropy_backward",
    "bluejay_block_middle",
    "bluejay_block_middle_backward",
    "bluejay_multiply_weights",
    "bluejay_decoder_block",
    "bluejay_keep_block",
    "bluejay_resident_block",
    "bluejay_slots_block",
    "bluejay_post_choices",
    "bluejay_choose",
)


class Library:
    """The loaded library and what it found out about the processor."""

    def __init__(self, file: Path) -> None:
        if is_cut_short(file):
            raise OSError(f"{file.name} is cut short")
        self._functions = ctypes.CDLL(str(file))
        self._functions.bluejay_instruction_set.restype = ctypes.c_char_p
        self._functions.bluejay_decoding_nanoseconds.restype = ctypes.c_int64
        self._functions.bluejay_await_mail.restype = ctypes.c_int64
        for name in _TARGETS:
            handler = jax.ffi.pycapsule(getattr(self._functions, name))
            jax.ffi.register_ffi_target(name, handler, platform="cpu")

    @property
    def instruction_set(self) -> str:
        """One of INSTRUCTION_SETS: the best that the processor can run, or the forced one."""
        found: bytes = self._functions.bluejay_instruction_set()
        return found.decode()

    @property
    def has_bfloat16(self) -> bool:
        """Whether products of bfloat16 run on this processor."""
        return bool(self._functions.bluejay_has_bfloat16())

    @property
    def num_threads(self) -> int:
        """Threads that share an operation, the caller included."""
        return int(self._functions.bluejay_num_threads())

    def set_num_threads(self, count: int) -> None:
        """Waits for the operation that runs."""
        self._functions.bluejay_set_num_threads(count)

    def forget_block(self, number: int) -> None:
        """Waits for the calls that read the block; later ones are refused."""
        self._functions.bluejay_forget_block(ctypes.c_int32(number))

    def keep_cache(
        self,
        bytes_per_value: int,
        sizes: Sequence[int],
        arrays: Sequence[NDArray[Any]],
        *,
        mail: NDArray[np.int32],
    ) -> int:
        """A number for a cache of these sizes: layers, rows, key/value heads, capacity, width.

        `arrays` are keys, values and, for bytes, their scales; `mail` [steps, numbers] is where
        calls put what they choose. All stay where they are until the cache is forgotten.
        """
        addresses = [array.ctypes.data for array in arrays]
        return int(
            self._functions.bluejay_keep_cache(
                ctypes.c_int32(bytes_per_value),
                (ctypes.c_int64 * 7)(*sizes, *mail.shape),
                *map(ctypes.c_void_p, [*addresses, None, None][:4]),
                ctypes.c_void_p(mail.ctypes.data),
            )
        )

    def forget_cache(self, number: int) -> None:
        """Waits for the calls that use the cache; later ones are refused."""
        self._functions.bluejay_forget_cache(ctypes.c_int32(number))

    def halt(self, cache: int, is_wanted: bool) -> None:
        """Whether calls over the cache end with the step they are at."""
        self._functions.bluejay_halt(ctypes.c_int32(cache), ctypes.c_int32(is_wanted))

    def clear_mail(self, cache: int) -> None:
        """Forget what calls have chosen so far."""
        self._functions.bluejay_clear_mail(ctypes.c_int32(cache))

    def await_mail(
        self, cache: int, seen: int, *, patience: float, pause: float = 0.0
    ) -> tuple[int, bool]:
        """Wait until more than `seen` steps have chosen: how many have, and whether theirs is the
        last one. Not before `pause` seconds are over unless it is, and `patience` longer at most.
        """
        found = self._functions.bluejay_await_mail(
            ctypes.c_int32(cache),
            ctypes.c_int64(seen),
            ctypes.c_int64(int(1e6 * pause)),
            ctypes.c_int64(int(1e6 * patience)),
        )
        return found // 2, bool(found % 2)

    @property
    def decoding_seconds(self) -> float:
        """Time that decoding has spent inside of the kernels since the library was loaded."""
        return int(self._functions.bluejay_decoding_nanoseconds()) * 1e-9

    def read_bandwidth(self, memory: NDArray[np.uint8], *, passes: int = 3) -> float:
        """Bytes per second at which all threads read `memory`: the median of some passes."""
        address, rates = memory.ctypes.data_as(ctypes.c_void_p), []
        for _ in range(passes):
            begun = time.perf_counter()
            self._functions.bluejay_read_memory(address, ctypes.c_int64(memory.nbytes))
            rates.append(memory.nbytes / (time.perf_counter() - begun))
        return sorted(rates)[passes // 2]

    def force(self, instruction_set: str) -> bool:
        """Whether the processor and this build have it; nothing changes if not."""
        return bool(self._functions.bluejay_force_instruction_set(instruction_set.encode()))


def library() -> Library | None:
    """The library, or None where it was not built, cannot be loaded, or is switched off."""
    return _found()[0]


def cpu_library() -> Library | None:
    """The library where JAX computes on the CPU, whose arrays alone it can take."""
    return library() if jax.default_backend() == "cpu" else None


def library_status() -> str:
    """Instruction set and threads of the library, or why there is none and what helps."""
    found, absence = _found()
    if found is None:
        return f"{absence}; everything runs on the reference implementation"
    return f"{found.instruction_set}, {found.num_threads} threads"


@functools.cache
def _found() -> tuple[Library | None, str]:
    wished = wish()
    if wished == "off":
        return None, f"switched off by {VARIABLE}=off"
    is_file, file = is_file_wished(), library_file()
    if file is None:
        return None, (
            "not built: install a C++ compiler (Debian and Ubuntu: apt install g++), then install "
            "Bluejay again"
        )
    try:
        found = Library(file)
    except (OSError, AttributeError) as error:
        remedy = f"look at {VARIABLE}={wished}" if is_file else "install Bluejay again"
        return None, f"cannot be loaded ({error}): {remedy}"
    if wished and not is_file and not found.force(wished):
        return None, (
            f"{VARIABLE}={wished} is none of {', '.join(INSTRUCTION_SETS)}, or not this processor's"
        )
    return found, ""
