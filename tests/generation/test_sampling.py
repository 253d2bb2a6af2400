"""The whole choice: draws, reports, state, batches and the number of programs."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy.typing import NDArray

from bluejay.core.errors import CheckpointError, UsageError
from bluejay.generation import sampling
from bluejay.generation.random import draw_bits, seed_words
from bluejay.generation.sampling import (
    Choice,
    Sampler,
    SamplingParams,
    choose_rows,
    log_probabilities,
)
from bluejay.generation.sampling_rows import (
    SamplingRows,
    SamplingState,
    active_transforms,
    first_state,
    sampling_row,
)
from bluejay.kernels.library import library

VOCABULARY = 331
ALLOWED = np.arange(VOCABULARY) % 7 != 3
LOGITS = (np.random.default_rng(1).standard_normal((6, VOCABULARY)) * 3).astype(np.float32)
EVERYTHING: dict[str, Any] = {
    "temperature": 1.3,
    "top_k": 90,
    "top_p": 0.95,
    "min_p": 0.001,
    "typical_p": 0.97,
    "repetition_penalty": 1.2,
    "presence_penalty": 0.3,
    "frequency_penalty": -0.2,
    "logit_bias": {5: 4.0, 8: -3.0},
    "seed": 11,
}


def sampler(*, allowed: NDArray[np.bool_] = ALLOWED, sample: int = 0, **values: Any) -> Sampler:
    return Sampler(SamplingParams(**values), allowed=allowed, sample_index=sample)


class Way:
    """A way to choose: by the reference, or by the native kernel."""

    def __init__(self, is_native: bool) -> None:
        self.is_native = is_native

    def choose(self, sampler: Sampler, row: NDArray[np.float32]) -> Choice:
        return sampler.choose(jnp.asarray(row), is_native=self.is_native)

    def ids_of(
        self, sampler: Sampler, num_tokens: int, logits: NDArray[np.float32] = LOGITS
    ) -> list[int]:
        return [self.choose(sampler, logits[step % len(logits)]).id for step in range(num_tokens)]


def masked_log_softmax(row: NDArray[np.float32]) -> NDArray[np.float64]:
    logits = np.where(ALLOWED, row.astype(np.float64), -np.inf)
    return logits - logits.max() - np.log(np.exp(logits - logits.max()).sum())


@pytest.fixture(params=[False, True], ids=["reference", "native"])
def way(request: pytest.FixtureRequest) -> Way:
    if request.param:
        assert library() is not None, "the library was not built: is there a C++ compiler?"
    return Way(bool(request.param))


def many_draws(
    params: SamplingParams, logits: NDArray[np.float32], num: int, *, way: Way
) -> NDArray[np.int32]:
    """The ids of `num` samples of one request at its first position, from one call."""
    row = sampling_row(
        params,
        allowed=np.isfinite(logits),
        sample_index=0,
        transforms=active_transforms(params),
    )
    rows = jax.tree.map(lambda x: jnp.repeat(x, num, axis=0), row)
    rows = replace(rows, samples=jnp.arange(num, dtype=jnp.int32))
    state = SamplingState(positions=jnp.zeros(num, jnp.int32), in_prompt=None, counts=None)
    wide = jnp.repeat(jnp.asarray(logits)[None], num, axis=0)
    choices, _ = choose_rows(
        wide,
        rows,
        state,
        transforms=active_transforms(params),
        num_alternatives=0,
        is_native=way.is_native,
    )
    return np.asarray(choices.ids)


def test_golden_ids_of_a_known_seed(way: Way) -> None:
    """The same on every machine, JAX version and number of threads."""
    plain = [273, 99, 198, 263, 209, 292, 273, 118, 198, 27, 84, 292]
    assert way.ids_of(sampler(seed=7), 12) == plain
    late = [183, 240, 198, 27, 84, 292, 124, 274, 316, 236, 240, 301]
    assert way.ids_of(sampler(seed=2**63 - 1, sample=3), 12) == late
    busy = [330, 193, 198, 236, 184, 49, 273, 39, 4, 85, 84, 50]
    assert way.ids_of(sampler(**EVERYTHING), 12) == busy


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_draw_inverts_the_cumulative_distribution(way: Way, temperature: float) -> None:
    """In float64, with the bits that belong to the seed, the sample and the position."""
    positions = jnp.arange(60, dtype=jnp.int32)
    seeds = jnp.repeat(jnp.asarray(seed_words(7))[None], 60, axis=0)
    uniform = np.asarray(draw_bits(seeds, jnp.full_like(positions, 2), positions)) / 2.0**32
    expected = []
    for position, share in enumerate(uniform):
        scores = masked_log_softmax(LOGITS[position % len(LOGITS)]) / temperature
        reached = np.exp(scores - scores.max()).cumsum()
        expected.append(int(np.searchsorted(reached, share * reached[-1], side="right")))
    assert way.ids_of(sampler(seed=7, sample=2, temperature=temperature), 60) == expected


def test_draws_follow_the_probabilities(way: Way) -> None:
    """Chi-square of 100,000 draws over ids of 1 to 20 %; disallowed ids never come."""
    expected = np.array([0.2, 0.15, 0.1, 0.0, 0.2, 0.05, 0.01, 0.09, 0.2])
    with np.errstate(divide="ignore"):
        logits = (np.log(expected) + 5).astype(np.float32)
    num = 100_000
    counts = np.bincount(many_draws(SamplingParams(seed=4), logits, num, way=way), minlength=9)
    assert counts[3] == 0
    kept = expected > 0
    statistic = (((counts - num * expected) ** 2)[kept] / (num * expected)[kept]).sum()
    assert statistic < 24.3  # chi-square of 7 degrees of freedom: 0.1 %


def test_successive_positions_are_independent(way: Way) -> None:
    """Pairs of ids at neighbouring positions of one sample: chi-square of a 4 by 4 table."""
    coins = sampler(allowed=np.ones(4, bool), seed=9)
    ids = way.ids_of(coins, 1601, np.zeros((1, 4), np.float32))
    pairs = np.bincount(np.array(ids[:-1]) * 4 + ids[1:], minlength=16)
    assert ((pairs - 100.0) ** 2 / 100).sum() < 37.7  # 15 degrees of freedom: 0.1 %


def test_disallowed_ids_are_never_drawn(way: Way) -> None:
    """Though their logits are the largest, and biased up."""
    params = SamplingParams(temperature=50.0, seed=1)
    row = np.where(ALLOWED, LOGITS[0], np.float32(40))
    biased = sampler(temperature=50.0, logit_bias=dict.fromkeys(np.flatnonzero(~ALLOWED), 100.0))
    assert ALLOWED[way.ids_of(biased, 300, row[None])].all()
    few = np.where(ALLOWED, row, -np.inf).astype(np.float32)[:20]
    drawn = many_draws(params, few, 100_000, way=way)
    assert set(drawn.tolist()) == set(np.flatnonzero(ALLOWED[:20]).tolist())


@pytest.mark.parametrize(("name", "value", "num"), [("top_k", 5, 5), ("top_p", 1e-6, 1)])
def test_filtered_ids_are_never_drawn(way: Way, name: str, value: float, num: int) -> None:
    params = SamplingParams(**{"temperature": 100.0, name: value})  # type: ignore[arg-type]
    drawn = many_draws(params, LOGITS[0], 3000, way=way)
    assert set(drawn.tolist()) == set(np.argsort(-LOGITS[0])[:num].tolist())


def test_same_seed_same_ids_and_samples_differ(way: Way) -> None:
    first = way.ids_of(sampler(seed=5), 40)
    assert way.ids_of(sampler(seed=5), 40) == first
    assert way.ids_of(sampler(seed=6), 40) != first
    assert way.ids_of(sampler(seed=5, sample=1), 40) != first
    # The high half of a seed counts too.
    assert way.ids_of(sampler(seed=5 + 2**32), 40) != first


def test_sample_i_does_not_depend_on_the_number_of_samples(way: Way) -> None:
    params = SamplingParams(seed=5)
    alone = [way.ids_of(sampler(seed=5, sample=i), 1)[0] for i in range(4)]
    allowed = np.where(ALLOWED, LOGITS[0], -np.inf).astype(np.float32)
    for num in (4, 9):
        assert many_draws(params, allowed, num, way=way)[:4].tolist() == alone


def test_greedy_takes_the_lowest_of_the_largest_after_penalties(way: Way) -> None:
    row = np.zeros(VOCABULARY, np.float32)
    row[[20, 40, 60]] = [2, -0.0, 2]
    row[[3, 10]] = 5  # 3 and 10 are disallowed
    greedy = sampler(temperature=0, presence_penalty=0.5)
    assert way.ids_of(greedy, 4, row[None]) == [20, 60, 20, 20]
    assert way.ids_of(sampler(temperature=0, logit_bias={50: 2.5}), 1, row[None]) == [50]


def test_zero_and_minus_zero_are_equal_to_greedy(way: Way) -> None:
    allowed = np.ones(4, bool)
    row = np.array([[-1.0, -0.0, 0.0, -0.0]], np.float32)
    assert way.ids_of(sampler(allowed=allowed, temperature=0), 1, row) == [1]


def test_repetition_penalty_sees_prompt_and_generated_ids(way: Way) -> None:
    row = np.zeros(VOCABULARY, np.float32)
    row[[20, 40, 60]] = [4, 3, 2.5]
    greedy = sampler(temperature=0, repetition_penalty=2.0)
    greedy.observe_prompt([20, 20])  # once, however often: 2
    assert way.ids_of(greedy, 3, row[None]) == [40, 60, 20]
    plain = sampler(temperature=0)
    plain.observe_prompt([20])
    assert way.ids_of(plain, 1, row[None]) == [20]


def test_presence_and_frequency_ignore_the_prompt(way: Way) -> None:
    row = np.zeros(VOCABULARY, np.float32)
    row[[20, 40]] = [4, 3]
    greedy = sampler(temperature=0, frequency_penalty=0.6)
    greedy.observe_prompt([20, 20, 20])
    # 4, 3.4, then 2.8 against 3, 2.8 against 2.4, 2.2 against 2.4
    assert way.ids_of(greedy, 5, row[None]) == [20, 20, 40, 20, 40]


def test_reported_log_probabilities_are_the_models_own(way: Way) -> None:
    """After the mask, before bias, penalties, temperature and filters."""
    busy = Sampler(SamplingParams(**EVERYTHING), allowed=ALLOWED, num_alternatives=7)
    busy.observe_prompt([5, 6, 8])
    for row in LOGITS:
        choice = way.choose(busy, row)
        expected = masked_log_softmax(row)
        best = np.argsort(-expected, kind="stable")[:7]
        assert [alternative.id for alternative in choice.alternatives] == best.tolist()
        reported = [alternative.logprob for alternative in choice.alternatives]
        np.testing.assert_allclose(reported, expected[best], rtol=1e-6, atol=1e-6)
        assert choice.logprob == pytest.approx(expected[choice.id], rel=1e-6, abs=1e-6)


def test_log_probabilities_of_given_ids_are_the_same(way: Way) -> None:
    reporting = Sampler(SamplingParams(seed=2), allowed=ALLOWED, num_alternatives=3)
    chosen = [way.choose(reporting, row) for row in LOGITS]
    ids = jnp.array([choice.id for choice in chosen], jnp.int32)
    allowed = jnp.repeat(jnp.asarray(ALLOWED)[None], len(ids), axis=0)
    given = log_probabilities(
        jnp.asarray(LOGITS), ids, allowed, num_alternatives=3, is_native=way.is_native
    )
    np.testing.assert_array_equal(given.logprobs, np.float32([c.logprob for c in chosen]))
    expected = [[alternative.logprob for alternative in c.alternatives] for c in chosen]
    np.testing.assert_array_equal(given.alternative_logprobs, np.float32(expected))


def test_probabilities_sum_to_one_over_a_real_vocabulary(way: Way) -> None:
    row = (np.random.default_rng(3).standard_normal(50400) * 2).astype(np.float32)
    ids = np.arange(50400)
    every = Sampler(SamplingParams(), allowed=ids < 50257, num_alternatives=50400)
    alternatives = way.choose(every, row).alternatives
    assert len(alternatives) == 50257
    logprobs = np.array([alternative.logprob for alternative in alternatives], np.float64)
    assert np.exp(logprobs).sum() == pytest.approx(1, abs=1e-6)


def batch_of(
    all_params: list[SamplingParams],
) -> tuple[SamplingRows, SamplingState, frozenset[str]]:
    transforms = frozenset[str]().union(*map(active_transforms, all_params))
    rows = [
        sampling_row(params, allowed=ALLOWED, sample_index=i, transforms=transforms)
        for i, params in enumerate(all_params)
    ]
    states = [first_state(transforms, vocabulary_size=VOCABULARY) for _ in all_params]
    joined_rows, joined_states = (
        jax.tree.map(lambda *parts: jnp.concatenate(parts), *parts) for parts in (rows, states)
    )
    return joined_rows, joined_states, transforms


@pytest.mark.parametrize("num_rows", [2, 5, 16])
def test_rows_of_a_batch_equal_single_rows_to_the_bit(way: Way, num_rows: int) -> None:
    """Though each row has other parameters, and so other programs when alone."""
    kinds: list[dict[str, Any]] = [
        EVERYTHING,
        {},
        {"temperature": 0},
        {"top_p": 0.8, "seed": 3},
        {"temperature": 0, "repetition_penalty": 1.5},
        {"typical_p": 0.5},
        {"top_k": 3, "logit_bias": {7: 2.0}},
        {"min_p": 0.1, "frequency_penalty": 1.0},
    ]
    all_params = [SamplingParams(**kinds[i % len(kinds)]) for i in range(num_rows)]
    logits = jnp.asarray(np.resize(LOGITS, (num_rows, VOCABULARY)))
    rows, state, transforms = batch_of(all_params)
    singles = [
        Sampler(params, allowed=ALLOWED, sample_index=i, num_alternatives=4)
        for i, params in enumerate(all_params)
    ]
    for _ in range(3):
        choices, state = choose_rows(
            logits, rows, state, transforms=transforms, num_alternatives=4, is_native=way.is_native
        )
        alone = [way.choose(single, logits[i]) for i, single in enumerate(singles)]
        assert choices.ids.tolist() == [choice.id for choice in alone]
        assert choices.logprobs.tolist() == [choice.logprob for choice in alone]
        expected = [[alternative.logprob for alternative in c.alternatives] for c in alone]
        assert choices.alternative_logprobs.tolist() == expected


def test_new_values_need_no_new_program(way: Way) -> None:
    """One program for each set of active transforms, whatever their values."""
    logits = jnp.asarray(np.resize(LOGITS, (1, 97))[0])

    def choose(**values: Any) -> None:
        single = sampler(allowed=np.ones(97, bool), **values)
        single.observe_prompt([1, 2])
        for _ in range(3):
            way.choose(single, logits)

    program = sampling._choose_row
    before = program._cache_size()
    choose(temperature=0.7, top_p=0.9)
    assert program._cache_size() == before + 1
    choose(temperature=1.9, top_p=0.1, seed=2**40, sample=5)
    assert program._cache_size() == before + 1
    choose(temperature=0.7, top_p=0.9, top_k=3)
    assert program._cache_size() == before + 2
    choose(temperature=0.2, top_p=0.5, top_k=40)
    assert program._cache_size() == before + 2


@pytest.mark.parametrize("damage", ["nan", "all removed", "inf"])
@pytest.mark.parametrize("temperature", [0, 1])
def test_logits_that_are_not_numbers_are_refused(way: Way, damage: str, temperature: float) -> None:
    row = LOGITS[0].copy()
    if damage == "all removed":
        row[:] = -np.inf
    else:
        row[100] = float(damage)
    single = sampler(temperature=temperature)
    way.choose(single, LOGITS[0])
    with pytest.raises(CheckpointError, match=r"logits for new token 1 are not finite.*float32"):
        way.choose(single, row)


def test_damage_in_disallowed_ids_is_no_damage(way: Way) -> None:
    row = np.where(ALLOWED, LOGITS[0], np.float32(np.nan))
    assert way.ids_of(sampler(seed=7), 6, row[None]) == way.ids_of(sampler(seed=7), 6, LOGITS[:1])


def test_what_does_not_fit_the_vocabulary_is_refused() -> None:
    with pytest.raises(UsageError, match="None of the 331 ids may be chosen"):
        sampler(allowed=np.zeros(VOCABULARY, bool))
    with pytest.raises(UsageError, match="names the id 331, but the vocabulary ends at 330"):
        sampler(logit_bias={VOCABULARY: 1.0})
    for outside in (-1, VOCABULARY):
        with pytest.raises(UsageError, match=f"holds the id {outside}, .* ends at 330"):
            sampler().observe_prompt([0, outside])
