"""Rows of a kept cache: the bits of a cache that programs take, and no way out of its memory."""

import gc
import threading
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluejay.kernels.decoding import SlotRows, native_decoding, post_choices
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


MAIL = (8, 6)  # steps, and numbers of one of them


@jax.jit
def _post_steps(number: Any, count: Any, factor: Any) -> Any:
    """Steps that post multiples of their number, with work between them: how many there were."""

    def take(now: Any) -> Any:
        step, _, work = now
        work = jax.lax.fori_loop(0, 20, lambda _, x: jnp.tanh(x @ x), work)
        found = (step + 1) * factor + (work[0, 0] * 0).astype(jnp.int32)
        return step + 1, post_choices(number, found, step + 1 < count), work

    begin = (
        jnp.zeros((), jnp.int32),
        jnp.ones((), jnp.bool_),
        jnp.full((192, 192), 1e-3, jnp.float32),
    )
    return jax.lax.while_loop(lambda now: now[1], take, begin)[0]


def mail_of(
    kept: SlotCache,
    steps: int,
    *,
    factor: int = 1,
    width: int = 6,
    pause: Callable[[], float] = lambda: 0.0,
) -> tuple[Any, Any]:
    kept.clear_mail()
    factors = jnp.full((2, width // 2), factor, jnp.int32)
    found: Any = _post_steps(jnp.asarray(kept.number), jnp.int32(steps), factors)
    return found, kept.mail(found.is_ready, pause=pause)


def mailing_cache() -> SlotCache:
    return SlotCache(layers=1, rows=1, heads=(1, CAPACITY, 8), dtype="float32", mail=MAIL)


def test_each_step_is_read_as_it_was_posted_and_the_last_one_says_so(native: Library) -> None:
    kept = mailing_cache()
    for steps in (1, 8, 3):
        found, mail = mail_of(kept, steps, factor=7)
        parts = [(numbers.tolist(), is_last) for numbers, is_last in mail]
        heard = [numbers for part, _ in parts for numbers in part]
        assert heard == [[7 * (at + 1)] * 6 for at in range(steps)]
        assert [is_last for _, is_last in parts] == [False] * (len(parts) - 1) + [True]
        assert int(found) == steps


def test_nobody_is_woken_for_steps_that_he_has_no_use_for_yet(native: Library) -> None:
    kept = mailing_cache()
    found, mail = mail_of(kept, 8, pause=lambda: 60.0)
    [(numbers, is_last)] = list(mail)
    assert numbers.tolist() == [[at + 1] * 6 for at in range(8)]
    assert is_last
    assert int(found) == 8


def test_a_pause_ends_with_a_call_that_is_halted(native: Library) -> None:
    kept = mailing_cache()
    kept.halt(True)
    begun = time.monotonic()
    _, mail = mail_of(kept, 8, pause=lambda: 60.0)
    assert [(len(numbers), is_last) for numbers, is_last in mail] == [(1, True)]
    assert time.monotonic() - begun < 30


def test_a_reader_sees_a_step_while_the_call_takes_others_and_ends_it(native: Library) -> None:
    """Calls of eight steps that their first word ends: the most have two or three by then."""
    kept, taken = mailing_cache(), list[int]()
    for _ in range(20):
        found, mail = mail_of(kept, 8)
        next(mail)
        kept.halt(True)
        list(mail)
        kept.halt(False)
        taken.append(int(found))
    assert sorted(taken)[10] < 8


def test_a_call_that_was_halted_before_it_began_takes_one_step(native: Library) -> None:
    kept = mailing_cache()
    kept.halt(True)
    found, mail = mail_of(kept, 8)
    assert [is_last for _, is_last in mail] == [True]
    assert int(found) == 1


@pytest.mark.parametrize(("steps", "width", "heard"), [(9, 6, 8), (1, 8, 0)])
def test_a_call_that_posts_too_much_fails_and_its_reader_ends(
    native: Library, steps: int, width: int, heard: int
) -> None:
    found, mail = mail_of(mailing_cache(), steps, width=width)
    parts = list(mail)
    assert sum(len(numbers) for numbers, _ in parts) == heard
    assert not any(is_last for _, is_last in parts)
    with pytest.raises(REFUSED, match="more steps or choices than there is room for"):
        found.block_until_ready()


def test_mail_of_a_cache_that_is_gone_keeps_nobody_waiting(native: Library) -> None:
    found = mailing_cache()
    number = int(found.number[0])
    del found
    gc.collect()
    reader = threading.Thread(target=native.await_mail, args=(number, 0), kwargs={"patience": 60.0})
    reader.start()
    reader.join(10)
    assert not reader.is_alive()
