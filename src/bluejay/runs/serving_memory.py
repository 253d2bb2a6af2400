"""What a server takes beside its weights, and whether that is free."""

import jax.numpy as jnp
from jax.sharding import Mesh

from bluejay.core.errors import MemoryLimitError
from bluejay.generation.engine_requests import EngineLimits
from bluejay.model.cache import cache_bytes, cache_capacity
from bluejay.model.config import DecoderConfig
from bluejay.runs.device_memory import free_bytes

# Of penalties, a row of the vocabulary for every slot: a flag, a count and a bias.
_TABLE_BYTES = 1 + 4 + 4
_SCALE_BYTES = 4


def slots_bytes(config: DecoderConfig, limits: EngineLimits, cache_dtype: str) -> int:
    """Keys and values of all slots, with the scales of int8."""
    return limits.num_slots * _row_bytes(config, limits.context_length, cache_dtype)


def require_memory(
    config: DecoderConfig,
    limits: EngineLimits,
    cache_dtype: str,
    mesh: Mesh | None = None,
    *,
    words_bytes: int = 0,
) -> None:
    """Raise MemoryLimitError if the caches and tables of a server with these limits do not fit.

    `words_bytes` are remembered of typed texts. Over a mesh each device has its share of the
    caches, and all of the tables.
    """
    num_devices = 1 if mesh is None else mesh.size
    one = _row_bytes(config, limits.context_length, cache_dtype)
    tables = (limits.num_slots + 1) * config.vocab_size * _TABLE_BYTES
    # One more row is for what is read outside the slots: texts to embed.
    needed = (slots_bytes(config, limits, cache_dtype) + one) // num_devices + tables + words_bytes
    free = free_bytes(mesh)
    if needed <= free:
        return
    narrower = "" if cache_dtype == "int8" else ", or keep keys and values in --cache-dtype int8"
    where = "" if mesh is None else " on each device"
    raise MemoryLimitError(
        f"{limits.num_slots} slots of {limits.context_length:,} tokens need"
        f" {needed / 1e9:.1f} GB of memory{where} beside the weights, and {free / 1e9:.1f} GB are"
        f" free: lower --slots or --context{narrower}."
    )


def _row_bytes(config: DecoderConfig, positions: int, cache_dtype: str) -> int:
    """Of one slot."""
    capacity = cache_capacity(positions)
    width = jnp.dtype(cache_dtype).itemsize
    values = cache_bytes(config, positions=capacity, bytes_per_value=width)
    if cache_dtype != "int8":
        return values
    return values + 2 * config.num_layers * config.num_kv_heads * capacity * _SCALE_BYTES
