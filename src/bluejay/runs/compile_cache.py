"""Compiled programs kept between runs."""

import jax

from bluejay.checkpoints.model_cache import cache_root

# Programs of a few models; the least recently used go first.
_MAX_BYTES = 1 << 30


def configure_compile_cache() -> None:
    """Keep every compiled program in Bluejay's cache folder, also those that compile fast."""
    folder = cache_root() / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", _MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
