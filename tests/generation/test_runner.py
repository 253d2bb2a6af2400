"""Prefill and decode give the whole sequence's logits, and a row never feels its neighbours."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from bluejay.core.errors import UsageError
from bluejay.generation.runner import Prefix, Runner
from bluejay.model.config import DecoderConfig
from bluejay.model.decoder import forward
from bluejay.model.presets import PRESETS, gptj_config
from small_models import drawn_params

GPTJ = gptj_config(2, 64, 4, rotary_dim=8, vocab_size=331)
# The widths of SmolLM2 and of GPT-J-6B's heads: products large enough for XLA to choose among its
# ways to multiply.
WIDE_LLAMA = replace(
    PRESETS["smollm2-135m-instruct"], num_layers=2, vocab_size=997, context_length=512
)
WIDE_GPTJ = replace(gptj_config(1, 1024, 4, rotary_dim=64, vocab_size=640))
LEARNED = replace(
    PRESETS["gpt2"],
    num_layers=2,
    embed_dim=96,
    num_heads=3,
    num_kv_heads=3,
    head_dim=32,
    feed_forward_dim=192,
    vocab_size=211,
)

LONGEST = 130


def random_ids(config: DecoderConfig, length: int, *, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, config.vocab_size, length).tolist()


def greedy_with_cache(runner: Runner, prompt: list[int], count: int) -> list[int]:
    prefix = runner.start(prompt, reserve=count)
    tokens = []
    for _ in range(count):
        tokens.append(int(jnp.argmax(prefix.logits)))
        prefix = runner.step(prefix, tokens[-1])
    return tokens


def greedy_in_groups(runner: Runner, prompts: list[list[int]], count: int) -> list[list[int]]:
    group = runner.group([runner.start(p, reserve=count) for p in prompts], reserve=count)
    found: list[list[int]] = [[] for _ in prompts]
    for _ in range(count):
        tokens = jnp.argmax(group.logits, axis=-1).tolist()[: len(prompts)]
        for row, token in zip(found, tokens, strict=True):
            row.append(token)
        blank = [None] * (runner.rows_per_call - len(prompts))
        group = runner.step_group(group, [*tokens, *blank])
    return found


@pytest.mark.parametrize("config", [GPTJ, LEARNED], ids=["gptj", "gpt2"])
def test_greedy_tokens_with_cache_without_and_in_a_mixed_batch(config: DecoderConfig) -> None:
    """At every prompt length from 1 to 130."""
    params, count = drawn_params(config), 4
    runner, grouped = Runner(params, config=config), Runner(params, config=config, rows_per_call=5)
    whole = jax.jit(partial(forward, config=config))
    ids = random_ids(config, LONGEST)
    alone = [greedy_with_cache(runner, ids[:length], count) for length in range(1, LONGEST + 1)]

    padded = np.zeros((LONGEST, LONGEST + count), np.int32)
    for length, tokens in enumerate(alone, start=1):
        padded[length - 1, : length + count] = [*ids[:length], *tokens]
    logits = np.concatenate(
        [np.asarray(whole(params, jnp.asarray(p))) for p in np.split(padded, 5)]
    )
    for length, tokens in enumerate(alone, start=1):
        rows = logits[length - 1, length - 1 : length - 1 + count]
        assert rows.argmax(axis=-1).tolist() == tokens, length

    # Rows of five very different lengths step together.
    for length in range(1, LONGEST // 5 + 1):
        lengths = [length + offset * (LONGEST // 5) for offset in range(5)]
        found = greedy_in_groups(grouped, [ids[:n] for n in lengths], count)
        assert found == [alone[n - 1] for n in lengths]


@pytest.mark.parametrize("config", [WIDE_LLAMA, WIDE_GPTJ], ids=["llama-576", "gptj-1024"])
def test_a_rows_logits_have_the_same_bits_alone_and_in_any_batch(config: DecoderConfig) -> None:
    runner = Runner(drawn_params(config), config=config, rows_per_call=16)
    prompts = [random_ids(config, length, seed=length) for length in (7, 40, 3, 129, 64, 16)]
    prompts += [random_ids(config, 5 + index, seed=index) for index in range(10)]

    def bits(batch: list[list[int]], row: int) -> list[NDArray[np.uint32]]:
        group = runner.group([runner.start(p, reserve=8) for p in batch], reserve=8)
        found = []
        for step in range(8):
            found.append(np.asarray(group.logits[row]).view(np.uint32))
            tokens = [(step * 17 + len(p)) % config.vocab_size for p in batch]
            group = runner.step_group(group, [*tokens, *[None] * (16 - len(batch))])
        return found

    alone = bits(prompts[:1], 0)
    for size in (2, 5, 16):
        in_batch = bits(prompts[:size], 0)
        reversed_batch = bits(prompts[:size][::-1], size - 1)
        for expected, first, last in zip(alone, in_batch, reversed_batch, strict=True):
            assert np.array_equal(expected, first), size
            assert np.array_equal(expected, last), size


def test_single_row_and_batched_programs_agree_closely() -> None:
    params = drawn_params(WIDE_LLAMA)
    single, batched = (Runner(params, config=WIDE_LLAMA, rows_per_call=n) for n in (1, 8))
    prompt = random_ids(WIDE_LLAMA, 30)
    one = single.step(single.start(prompt, reserve=1), 5).logits
    group = batched.group([batched.start(prompt, reserve=1)], reserve=1)
    many = batched.step_group(group, [5, *[None] * 7]).logits[0]
    np.testing.assert_allclose(one, many, rtol=0, atol=1e-4 * float(jnp.abs(one).max()))


def test_capacity_does_not_change_a_bit() -> None:
    """The same prompt with room for 8 and for 900 more tokens."""
    runner = Runner(drawn_params(GPTJ), config=GPTJ)
    prompt = random_ids(GPTJ, 77)
    small, large = (runner.start(prompt, reserve=reserve) for reserve in (8, 900))
    assert small.capacity < large.capacity
    for token in (3, 5, 8):
        assert np.array_equal(small.logits, large.logits)
        small, large = runner.step(small, token), runner.step(large, token)
    assert np.array_equal(small.logits, large.logits)


def test_branch_leaves_the_prefix_usable_and_step_continues_it() -> None:
    runner = Runner(drawn_params(GPTJ), config=GPTJ)
    prefix = runner.start(random_ids(GPTJ, 20), reserve=2)
    first, second = runner.branch(prefix, 7), runner.branch(prefix, 9)
    assert not np.array_equal(first.logits, second.logits)
    again = runner.step(prefix, 7)
    assert np.array_equal(first.logits, again.logits)


def test_a_prefix_grows_beyond_its_reserve() -> None:
    runner = Runner(drawn_params(GPTJ), config=GPTJ)
    ids = random_ids(GPTJ, 300)
    prefix = runner.start(ids[:250])
    for token in ids[250:]:
        prefix = runner.step(prefix, token)
    np.testing.assert_allclose(prefix.logits, runner.score(ids)[-1], rtol=0, atol=1e-4)


def test_scores_are_those_of_every_prefix() -> None:
    runner = Runner(drawn_params(GPTJ), config=GPTJ)
    ids = random_ids(GPTJ, 100)
    scores = runner.score(ids)
    assert scores.shape == (100, GPTJ.vocab_size)
    for length in (1, 16, 17, 99, 100):
        last = runner.start(ids[:length]).logits
        np.testing.assert_allclose(scores[length - 1], last, rtol=0, atol=1e-4)


def test_a_handful_of_programs() -> None:
    """Prompts of many lengths and a long decode: two chunk sizes and one step."""
    runner = Runner(drawn_params(GPTJ), config=GPTJ)
    for length in (1, 15, 16, 17, 63, 64, 100, 130, 200):
        runner.start(random_ids(GPTJ, length))
    prefix: Prefix = runner.start(random_ids(GPTJ, 10), reserve=200)
    for token in range(100):
        prefix = runner.step(prefix, token)
    assert runner.num_programs == 3


@pytest.mark.parametrize(
    ("ids", "reserve", "message"),
    [
        ([], 0, "The prompt is empty"),
        ([1, 331], 0, "Token id 331 is outside the model's 331 embedding rows"),
        ([1, -1], 0, "Token id -1 is outside"),
        ([1] * 2000, 49, "2000 prompt tokens and 49 new ones exceed the model's context of 2048"),
    ],
)
def test_prompts_that_cannot_run_are_refused(ids: list[int], reserve: int, message: str) -> None:
    runner = Runner(drawn_params(GPTJ), config=GPTJ)
    with pytest.raises(UsageError, match=message):
        runner.start(ids, reserve=reserve)


def test_the_full_context_can_be_used_and_no_more() -> None:
    config = replace(GPTJ, context_length=20)
    runner = Runner(drawn_params(config), config=config)
    prefix = runner.start(random_ids(config, 19))
    prefix = runner.step(prefix, 1)
    with pytest.raises(UsageError, match="context of 20 tokens is full"):
        runner.step(prefix, 1)
