"""Strict numerics and checked types for the whole suite."""

import gc
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest
from hypothesis import settings
from jaxtyping import install_import_hook

# Not the user's: tests neither fill nor find what lies there. Kept, so that a rerun compiles less.
CACHE = Path(__file__).resolve().parent.parent / ".cache" / "bluejay"

# The environment, not `jax.config`: child processes of tests get the same settings.
os.environ |= {
    "JAX_NUMPY_DTYPE_PROMOTION": "strict",
    "JAX_NUMPY_RANK_PROMOTION": "raise",
    "BLUEJAY_CACHE": str(CACHE),
    "JAX_COMPILATION_CACHE_DIR": str(CACHE / "compiled"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    # With a limit JAX locks the folder, without one two workers may read a half-written entry.
    "JAX_COMPILATION_CACHE_MAX_SIZE": str(1 << 30),
}
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# A shell starts background jobs with SIGINT ignored, and children inherit that: tests that
# interrupt one would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples in every run, and no clock: a busy machine is not a failure.
settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")

install_import_hook("bluejay", "function_types.check_function")


# A compiled program takes some dozen mappings of memory, of which Linux gives a process 65,530 and
# then fails: compiling ends in a segmentation fault.
MOST_MAPPINGS = 25_000


@pytest.fixture(scope="module", autouse=True)
def few_mappings() -> Iterator[None]:
    """Programs of earlier modules are let go of before there are too many."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and len(mappings.read_bytes().splitlines()) > MOST_MAPPINGS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The file of a real pretrained model of 135 M parameters."""
    from real_model import fetch_smollm2

    return fetch_smollm2()


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real text, vocabularies and evaluation sets."""
    folder = os.environ.get("BLUEJAY_DATA")
    if not folder:
        pytest.skip("BLUEJAY_DATA does not name the data folder")
    if not Path(folder).is_dir():
        pytest.fail(f"BLUEJAY_DATA={folder} is not a folder")
    return Path(folder)
