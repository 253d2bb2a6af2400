"""A checked draft gives what single steps give, to the bit: ids, log probabilities, the rest."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bluejay.generation.decode_loop import DecodeLoop
from bluejay.generation.sampling import Choice
from bluejay.generation.sampling_params import SamplingParams
from bluejay.generation.speculation_length import SIZES
from bluejay.kernels.decoding import native_decoding
from bluejay.model.decoder import logits
from speculation_models import FAMILIES, VOCAB, loop_of, prompt_of, runner_of

SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "drawn": {"temperature": 0.9, "top_p": 0.9, "seed": 5},
    "all": {
        "temperature": 0.7,
        "top_k": 40,
        "top_p": 0.95,
        "min_p": 0.001,
        "typical_p": 0.99,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "frequency_penalty": 0.2,
        "logit_bias": {7: 2.0, 11: -3.0},
        "seed": 11,
    },
    "greedy with penalties": {"temperature": 0, "repetition_penalty": 1.3, "logit_bias": {5: 1.0}},
}
# What an adversary drafts: for each pass how many ids are right, how many follow, and the size.
PASSES = st.lists(
    st.tuples(st.integers(0, 15), st.integers(0, 15), st.sampled_from((1, *SIZES))),
    min_size=1,
    max_size=12,
)
MAX_TOKENS = 40


def in_single_steps(loop: DecodeLoop) -> list[Choice]:
    found: list[Choice] = []
    while loop.remaining:
        found += loop.advance(1)[0]
    return found


def by_passes(
    loop: DecodeLoop, expected: Sequence[Choice], passes: Sequence[tuple[int, int, int]]
) -> list[Choice]:
    """Draft as told: so many ids as they will come, then others; the script runs in a circle."""
    found, number = loop.advance(1)[0], 0
    while loop.remaining:
        right, others, size = passes[number % len(passes)]
        number += 1
        if size == 1 or size > loop.room:
            found += loop.advance(3)[0]
            continue
        coming = [choice.id for choice in expected[len(found) : len(found) + right]]
        wrong = [(choice.id + 1) % VOCAB for choice in expected[len(found) + right :]]
        draft = [*coming, *[*wrong, *[0] * others][:others]]
        found += loop.check(draft[: size - 1], positions=size)
    return found


@cache
def expected_choices(
    family: str, bits: int, dtype: str, sampling: str, stop: frozenset[int] = frozenset()
) -> list[Choice]:
    return in_single_steps(new_loop(family, bits, dtype, sampling, stop))


def new_loop(
    family: str, bits: int, dtype: str, sampling: str, stop: frozenset[int] = frozenset()
) -> DecodeLoop:
    return loop_of(
        runner_of(family, bits, dtype),
        prompt_of(20),
        SamplingParams(**SAMPLINGS[sampling]),
        max_tokens=MAX_TOKENS,
        stop_ids=stop,
        alternatives=2,
    )


@pytest.mark.parametrize("sampling", ["greedy", "all"])
@pytest.mark.parametrize(("bits", "dtype"), [(32, "float32"), (8, "float16"), (4, "int8")])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_weight_and_cache(family: str, bits: int, dtype: str, sampling: str) -> None:
    kind = (family, bits, dtype, sampling)
    expected = expected_choices(*kind)
    assert len(expected) == MAX_TOKENS
    # Right, wrong, partly right, and single steps between.
    passes = [(15, 0, 16), (2, 1, 4), (0, 15, 16), (0, 3, 4), (0, 0, 1), (6, 9, 16)]
    assert by_passes(new_loop(*kind), expected, passes) == expected


@pytest.mark.parametrize("sampling", SAMPLINGS)
@settings(max_examples=15)
@given(passes=PASSES)
def test_whatever_is_drafted(sampling: str, passes: list[tuple[int, int, int]]) -> None:
    kind = ("gptj", 32, "float32", sampling)
    expected = expected_choices(*kind)
    assert by_passes(new_loop(*kind), expected, passes) == expected


@pytest.mark.parametrize("at", [0, 1, 5, 17])
def test_a_stop_id_inside_a_draft_ends_the_row(at: int) -> None:
    kind = ("gptj", 32, "float32", "drawn")
    whole = expected_choices(*kind)
    stop = frozenset([whole[at].id])
    expected = expected_choices(*kind, stop)
    assert expected == whole[: 1 + [choice.id for choice in whole].index(whole[at].id)]
    assert by_passes(new_loop(*kind, stop), whole, [(15, 0, 16)]) == expected


@pytest.mark.parametrize("max_tokens", [1, 2, 3, 9, 17])
def test_the_last_allowed_choice_inside_a_draft_ends_the_row(max_tokens: int) -> None:
    expected = expected_choices("gptj", 32, "float32", "drawn")
    sampling = SamplingParams(**SAMPLINGS["drawn"])
    loop = loop_of(
        runner_of("gptj"), prompt_of(20), sampling, max_tokens=max_tokens, alternatives=2
    )
    assert by_passes(loop, expected, [(15, 0, 16)]) == expected[:max_tokens]


@pytest.mark.parametrize("family", ["gptj", "gpt2"])
def test_a_nearly_full_context(family: str) -> None:
    """512 positions, of the context and of the cache alike; the prompt leaves 14."""
    runner, sampling = runner_of(family), SamplingParams(**SAMPLINGS["drawn"])
    prompt = prompt_of(498)
    loops = [loop_of(runner, prompt, sampling, max_tokens=14) for _ in range(2)]
    expected = in_single_steps(loops[0])
    assert loops[1].room == 14
    assert by_passes(loops[1], expected, [(7, 0, 8), (3, 0, 4), (1, 2, 16)]) == expected


def test_passes_over_the_border_of_a_chunk_of_attention() -> None:
    """The native kernels attend in chunks of 256 positions."""
    runner, sampling = runner_of("gptj"), SamplingParams(**SAMPLINGS["drawn"])
    loops = [loop_of(runner, prompt_of(240), sampling, max_tokens=40) for _ in range(2)]
    expected = in_single_steps(loops[0])
    assert by_passes(loops[1], expected, [(15, 0, 16), (3, 12, 16)]) == expected


@pytest.mark.parametrize("size", SIZES)
def test_logits_of_several_positions_are_those_of_one(size: int) -> None:
    """What `DecodeLoop.check` rests on, by itself."""
    runner = runner_of("llama-576")
    params, config = runner.params, runner.config
    x = jax.random.normal(jax.random.key(size), (1, size, config.embed_dim))

    @jax.jit
    def scores(x: jax.Array) -> jax.Array:
        with native_decoding():
            return logits(params, x, config=config)

    singly = [np.asarray(scores(x[:, at : at + 1])) for at in range(size)]
    assert np.array_equal(np.asarray(scores(x)), np.concatenate(singly, axis=1))
