"""Compiled programs kept between runs."""

import os
from pathlib import Path

import jax

from bluejay.checkpoints.model_cache import cache_root

# Programs of a few models; the least recently used go first.
_MAX_BYTES = 1 << 30


def compile_cache_folder() -> Path:
    """`JAX_COMPILATION_CACHE_DIR` where that is set, else a folder in Bluejay's cache."""
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(chosen) if chosen else cache_root() / "compiled"


def configure_compile_cache() -> None:
    """Keep every compiled program, also those that compile fast and those that are small.

    A user's own settings of JAX stay as they are.
    """
    if os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return
    jax.config.update("jax_compilation_cache_dir", str(compile_cache_folder()))
    jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
