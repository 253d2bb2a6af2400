"""Rows of a kept cache: the bits of a cache that programs take, and no way out of its memory."""

import gc
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluejay.kernels.decoding import SlotRows, native_decoding
from bluejay.kernels.library import Library
from bluejay.kernels.slot_cache import SlotCache
from bluejay.model.cache import empty_cache
from bluejay.model.cached_block import keep_params
from bluejay.model.decoder import extend, extend_slots
from bluejay.model.params import DecoderParams
from speculation_models import FAMILIES, params_of

# JAX raises the one where it computes at once, the other where it computes later.
REFUSED = (ValueError, jax.errors.JaxRuntimeError)
CAPACITY = 128
IDS = np.random.default_rng(5).integers(0, 97, (2, 48)).astype(np.int32)


@partial(jax.jit, static_argnames="config")
def _extend(*arguments: Any, config: Any) -> Any:
    with native_decoding():
        return extend(*arguments, config=config)


@partial(jax.jit, static_argnames="config")
def _extend_slots(*arguments: Any, config: Any) -> Any:
    with native_decoding():
        return extend_slots(*arguments, config=config)


@cache
def kept_params(family: str, bits: int) -> DecoderParams:
    return keep_params(params_of(family, bits), config=FAMILIES[family])


def new_cache(family: str, dtype: str = "float32", *, rows: int = 5) -> SlotCache:
    config = FAMILIES[family]
    heads = (config.num_kv_heads, CAPACITY, config.head_dim)
    return SlotCache(layers=config.num_layers, rows=rows, heads=heads, dtype=dtype)


def run(
    family: str,
    bits: int,
    kept: SlotCache,
    slots: list[int],
    *,
    ids: np.ndarray,
    starts: list[int],
) -> np.ndarray:
    rows = SlotRows(cache=jnp.asarray(kept.number), slots=jnp.asarray(slots, jnp.int32))
    return np.asarray(
        _extend_slots(
            kept_params(family, bits),
            jnp.asarray(ids),
            jnp.asarray(starts, jnp.int32),
            rows,
            config=FAMILIES[family],
        )
    )


@pytest.mark.parametrize("family", ["gptj", "gpt2", "llama"])
@pytest.mark.parametrize(("bits", "dtype"), [(32, "float32"), (8, "float16"), (4, "int8")])
def test_rows_in_any_slots_have_the_bits_of_a_cache_of_their_own(
    native: Library, family: str, bits: int, dtype: str
) -> None:
    """Prompts in two pieces, then single steps, in slots that cross and beside blank rows."""
    config = FAMILIES[family]
    own = empty_cache(config, batch=2, capacity=CAPACITY, dtype=dtype)
    kept = new_cache(family, dtype)
    begin, starts = 0, [0, 0]
    for size in (20, 16, *[1] * 12):
        piece = IDS[:, begin : begin + size]
        expected, own = _extend(
            kept_params(family, bits), piece, jnp.asarray(starts, jnp.int32), own, config=config
        )
        blank = np.zeros((2, size), np.int32)
        found = run(
            family,
            bits,
            kept,
            [3, 1, -1, -1],
            ids=np.concatenate([piece, blank]),
            starts=[*starts, 0, 99999],
        )
        np.testing.assert_array_equal(found[:2], np.asarray(expected))
        assert not found[2:].any()
        begin, starts = begin + size, [begin + size] * 2


def test_a_copied_prefix_goes_on_with_the_same_bits(native: Library) -> None:
    kept = new_cache("llama", "int8")
    run("llama", 8, kept, [2], ids=IDS[:1, :32], starts=[0])
    kept.copy(2, 4, 32)
    tail = IDS[:1, 32:40]
    original = run("llama", 8, kept, [2], ids=tail, starts=[32])
    copied = run("llama", 8, kept, [4], ids=tail, starts=[32])
    np.testing.assert_array_equal(copied, original)
    elsewhere = run("llama", 8, kept, [0], ids=tail, starts=[32])
    assert not np.array_equal(elsewhere, original)


@pytest.mark.parametrize(
    ("slots", "starts"),
    [
        ([5, 0], [0, 0]),
        ([-2, 0], [0, 0]),
        ([2**31 - 1, 0], [0, 0]),
        ([1, 1], [0, 0]),
        ([-1, 1], [0, 0]),
        ([0, 1], [0, CAPACITY]),
        ([0, 1], [-1, 0]),
    ],
)
def test_rows_outside_of_the_cache_are_refused(
    native: Library, slots: list[int], starts: list[int]
) -> None:
    kept = new_cache("gptj")
    with pytest.raises(REFUSED, match=r"cache row each of its own|outside of the cache"):
        run("gptj", 32, kept, slots, ids=IDS[:, :1], starts=starts)


def test_a_cache_that_is_gone_or_of_another_model_is_refused(native: Library) -> None:
    kept = new_cache("gptj")
    gone = replace_number(new_cache("gptj"), kept.number)
    run("gptj", 32, gone, [0], ids=IDS[:1, :1], starts=[0])
    del kept
    gc.collect()
    with pytest.raises(REFUSED, match="cache is gone"):
        run("gptj", 32, gone, [0], ids=IDS[:1, :1], starts=[0])
    with pytest.raises(REFUSED, match="do not fit together"):
        run("llama", 32, new_cache("gptj"), [0], ids=IDS[:1, :1], starts=[0])


def replace_number(cache: SlotCache, number: np.ndarray) -> SlotCache:
    cache.number = number.copy()
    return cache
