"""Where the native library's file is. Starts without JAX."""

import importlib.util
import os
from pathlib import Path

# "off", one of `library.INSTRUCTION_SETS`, or a library's file (*.so) in place of the installed
# one: for tests and measurements.
VARIABLE = "BLUEJAY_KERNELS"
_MODULE = "bluejay.kernels._kernels"


def wish() -> str:
    """What the variable says."""
    return os.environ.get(VARIABLE, "")


def is_file_wished() -> bool:
    """Whether the variable names a file."""
    return wish().endswith(".so")


def library_file() -> Path | None:
    """The library's file, which may not be there if it is wished for; None where none was built."""
    if is_file_wished():
        return Path(wish()).absolute()
    # The import system finds it, for an editable install keeps it apart from the sources.
    spec = importlib.util.find_spec(_MODULE)
    return None if spec is None or spec.origin is None else Path(spec.origin)


def is_cut_short(file: Path) -> bool:
    """True of a 64-bit ELF file that ends before its table of sections, which stands last.

    A full disk leaves such files; to load one kills the process (SIGBUS) without a word.
    """
    with open(file, "rb") as opened:
        header = opened.read(64)
    if header[:5] != b"\x7fELF\x02":
        return False  # what the loader refuses by itself, or another system's format
    table, entry, count = (
        int.from_bytes(header[begin:end], "little") for begin, end in ((40, 48), (58, 60), (60, 62))
    )
    return table + entry * count > file.stat().st_size
