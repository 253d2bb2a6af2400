"""Numbers marked (llama.cpp) are those of its tests/test-sampling.cpp at 07e4038f."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluejay.generation import candidates as filters
from bluejay.generation.candidates import Candidates, Sampler
from bluejay.generation.sampler_chain import (
    ExcludeTopChoices,
    Filter,
    Mirostat,
    Penalties,
    RepeatedSequences,
    SamplerChain,
    Stage,
)

FOUR, FIVE = (0.1, 0.2, 0.3, 0.4), (0.2,) * 5


def candidates(shares: Sequence[float]) -> Candidates:
    with np.errstate(divide="ignore"):
        return Candidates(ids=np.arange(len(shares)), scores=np.log(np.asarray(shares)))


def shares_of(found: Candidates, size: int) -> list[float]:
    """[V] probabilities, 0 for ids that are gone."""
    row = np.zeros(size)
    row[found.ids] = found.probabilities
    return list(row)


@pytest.mark.parametrize(
    ("sampler", "shares", "expected"),
    [
        # (llama.cpp)
        (lambda c: filters.scale(c, 1.0), FOUR, FOUR),
        (lambda c: filters.scale(c, 0.0), FOUR, (0, 0, 0, 1)),
        (lambda c: filters.top_k(c, 1), FOUR, (0, 0, 0, 1)),
        (lambda c: filters.top_k(c, 3), FOUR, (0, 0.22222, 0.33333, 0.44444)),
        (lambda c: filters.top_k(c, 4), FOUR, FOUR),
        (lambda c: filters.top_k(c, 0), FOUR, FOUR),
        (lambda c: filters.top_p(c, 0.0), FOUR, (0, 0, 0, 1)),
        (lambda c: filters.top_p(c, 0.7), FOUR, (0, 0, 0.428571, 0.571429)),
        (lambda c: filters.top_p(c, 0.8), FOUR, (0, 0.22222, 0.33333, 0.44444)),
        (lambda c: filters.top_p(c, 1.0), FOUR, FOUR),
        (lambda c: filters.min_p(c, 0.0), FOUR, FOUR),
        (lambda c: filters.min_p(c, 0.24), FOUR, FOUR),
        (lambda c: filters.min_p(c, 0.26), FOUR, (0, 2 / 9, 3 / 9, 4 / 9)),
        (lambda c: filters.min_p(c, 0.49), FOUR, (0, 2 / 9, 3 / 9, 4 / 9)),
        (lambda c: filters.min_p(c, 0.51), FOUR, (0, 0, 3 / 7, 4 / 7)),
        (lambda c: filters.min_p(c, 0.76), FOUR, (0, 0, 0, 1)),
        (lambda c: filters.min_p(c, 1.05), FOUR, (0, 0, 0, 1)),
        (lambda c: filters.exclude_top_choices(c, 0.09), FOUR, (1, 0, 0, 0)),
        (lambda c: filters.exclude_top_choices(c, 0.19), FOUR, (1 / 3, 2 / 3, 0, 0)),
        (lambda c: filters.exclude_top_choices(c, 0.29), FOUR, (1 / 6, 2 / 6, 3 / 6, 0)),
        (lambda c: filters.exclude_top_choices(c, 0.39), FOUR, FOUR),
        (lambda c: filters.typical(c, 0.5), (0.97, 0.01, 0.01, 0.01), (1, 0, 0, 0)),
        (lambda c: filters.typical(c, 0.5), (0.4, 0.2, 0.2, 0.2), (0, 1 / 3, 1 / 3, 1 / 3)),
        (lambda c: filters.top_n_sigma(c, 1.0), FOUR, (0, 0, 0.428571, 0.571429)),
        (lambda c: filters.top_n_sigma(c, 0.0), FOUR, FOUR),
        (lambda c: filters.top_n_sigma(c, 3.0), FOUR, FOUR),
        # As llama.cpp's tests had it while it had this sampler.
        (lambda c: filters.tail_free(c, 0.25), (0.1, 0.15, 0.2, 0.25, 0.3), (0, 0, 0, 0, 1)),
        (
            lambda c: filters.tail_free(c, 0.75),
            (0.1, 0.15, 0.2, 0.25, 0.3),
            (0, 0, 0, 5 / 11, 6 / 11),
        ),
        (
            lambda c: filters.tail_free(c, 0.99),
            (0.1, 0.15, 0.2, 0.25, 0.3),
            (0, 0, 0, 5 / 11, 6 / 11),
        ),
        (lambda c: filters.tail_free(c, 1.0), (0.5, 0.3, 0.1, 0.1), (0.5, 0.3, 0.1, 0.1)),
        # 0.6 * 0.6 * 0.5 = 0.18
        (lambda c: filters.top_a(c, 0.5), (0.6, 0.2, 0.17, 0.03), (0.75, 0.25, 0, 0)),
        (lambda c: filters.top_a(c, 9.0), (0.6, 0.2, 0.2), (1, 0, 0)),
        (lambda c: filters.mirostat(c, 2.0), (0.5, 0.25, 0.125, 0.125), (2 / 3, 1 / 3, 0, 0)),
        (lambda c: filters.mirostat(c, 0.1), (0.5, 0.25, 0.125, 0.125), (1, 0, 0, 0)),
        (filters.add_bias({1: float(np.log(3)), 7: 5.0}), (0.5, 0.5, 0), (0.25, 0.75, 0)),
        # All candidates alike: the whole range of temperatures is used, which changes nothing.
        (filters.dynamic_temperature(0.5, 1.5, 1.0), (0.25,) * 4, (0.25,) * 4),
        # exp(-ln(2)**2) = 0.618: half as probable becomes 0.618 times as probable.
        (filters.smooth(1.0), (2 / 3, 1 / 3), (1 / 1.61850, 0.61850 / 1.61850)),
    ],
)
def test_filters_leave_what_is_published(
    sampler: Sampler, shares: Sequence[float], expected: Sequence[float]
) -> None:
    found = sampler(candidates(shares))
    assert shares_of(found, len(shares)) == pytest.approx(list(expected), abs=1e-4)


def test_dynamic_temperature_is_hotter_the_less_the_model_knows() -> None:
    sample = filters.dynamic_temperature(0.5, 1.5, 1.0)
    sure, unsure = (0.97, 0.01, 0.01, 0.01), (0.4, 0.3, 0.2, 0.1)
    assert shares_of(sample(candidates(sure)), 4)[0] > 0.97
    assert shares_of(sample(candidates(unsure)), 4)[0] < 0.4
    # By hand: entropy of (3/4, 1/4) is 0.8113 of ln 2, so the temperature is 0.5 + 0.8113.
    found = shares_of(sample(candidates((0.75, 0.25))), 2)
    assert found[0] == pytest.approx(1 / (1 + 3 ** (-1 / 1.31128)), abs=1e-4)


# Stage, history, shares before and after, mostly as llama.cpp has them.
PUBLISHED_WITH_HISTORY: list[tuple[Stage, list[int], Sequence[float], Sequence[float]]] = [
    (Penalties(repetition=50), [0], FIVE, (0, 0.25, 0.25, 0.25, 0.25)),
    (Penalties(repetition=50), [0, 1, 2], FIVE, (0, 0, 0, 0.5, 0.5)),
    (Penalties(repetition=50), [0, 1, 2, 0, 0], FIVE, (0, 0, 0, 0.5, 0.5)),
    (
        Penalties(frequency=5, presence=5),
        [0],
        FIVE,
        (0.000011, 0.249997, 0.249997, 0.249997, 0.249997),
    ),
    (
        Penalties(frequency=5, presence=5),
        [0, 1, 2, 0, 0],
        FIVE,
        (0.0, 0.000023, 0.000023, 0.499977, 0.499977),
    ),
    (
        RepeatedSequences(multiplier=1, base=1.1, allowed_length=2, last_n=4),
        [0, 1],
        (0.25,) * 4,
        (0.25,) * 4,
    ),
    (
        RepeatedSequences(multiplier=1, base=1.1, allowed_length=2, last_n=5),
        [0, 1, 2, 0, 1],
        (0.25,) * 4,
        (0.296923, 0.296923, 0.109232, 0.296923),
    ),
    (
        RepeatedSequences(multiplier=1, base=1.1, allowed_length=2, last_n=6, breakers=[3]),
        [0, 1, 3, 4, 0, 1],
        FIVE,
        FIVE,
    ),
    (
        RepeatedSequences(multiplier=2, base=1.1, allowed_length=2, last_n=5),
        [0, 1, 2, 0, 1],
        FIVE,
        (0.241818, 0.241818, 0.032727, 0.241818, 0.241818),
    ),
    (
        RepeatedSequences(multiplier=1, base=1.1, allowed_length=4, last_n=7),
        [0, 1, 2, 3, 4, 0, 1],
        FIVE,
        FIVE,
    ),
    # Only the last two ids count, and 0 is not among them.
    (Penalties(repetition=50, last_n=2), [0, 1, 2], FIVE, (1 / 3, 0, 0, 1 / 3, 1 / 3)),
    (Penalties(repetition=50, last_n=0), [0, 1, 2], FIVE, FIVE),
    # The farther half, 0 and 1, is penalised by no part of the penalty.
    (Penalties(repetition=50, slope=0), [0, 1, 2, 3], FIVE, (1 / 3, 1 / 3, 0, 0, 1 / 3)),
]


@pytest.mark.parametrize(("stage", "history", "shares", "expected"), PUBLISHED_WITH_HISTORY)
def test_stages_with_a_history_give_what_is_published(
    stage: Stage, history: list[int], shares: Sequence[float], expected: Sequence[float]
) -> None:
    stage.begin(history)
    found = stage.sample(candidates(shares))
    assert shares_of(found, len(shares)) == pytest.approx(list(expected), abs=1e-5)


def plain_dry_lengths(ids: list[int], breakers: set[int]) -> dict[int, int]:
    """How long a repeated sequence each id would go on with, by looking at every place."""
    longest: dict[int, int] = {}
    for place in range(len(ids) - 1):
        length = 0
        while (
            length <= place
            and ids[place - length] == ids[len(ids) - 1 - length]
            and ids[place - length] not in breakers
        ):
            length += 1
        following = ids[place + 1]
        if length and following not in breakers:
            longest[following] = max(longest.get(following, 0), length)
    return longest


@given(
    ids=st.lists(st.integers(0, 3), min_size=1, max_size=40),
    breakers=st.sets(st.integers(0, 3), max_size=2),
    num_prompt=st.integers(0, 40),
)
def test_repeated_sequences_are_those_that_a_plain_search_finds(
    ids: list[int], breakers: set[int], num_prompt: int
) -> None:
    stage = RepeatedSequences(multiplier=1, base=2, allowed_length=1, breakers=breakers)
    stage.begin(ids[:num_prompt])
    for token in ids[num_prompt:]:
        stage.chosen(token)
    scores = stage.sample(Candidates(ids=np.arange(4), scores=np.zeros(4))).scores
    expected = np.zeros(4)
    for token, length in plain_dry_lengths(ids, breakers).items():
        expected[token] = -(2.0 ** (length - 1))
    assert list(scores) == list(expected)


def test_a_long_repetition_is_impossible_and_no_overflow() -> None:
    stage = RepeatedSequences(multiplier=5, base=4, allowed_length=2)
    stage.begin([1, 2] * 1000)
    [first, second, third] = stage.sample(candidates((0.2, 0.7, 0.1))).scores
    assert first > -2
    assert second < -1e29
    assert third > -3


def test_xtc_leaves_out_as_often_as_asked_and_the_same_for_the_same_seed() -> None:
    def left_out(seed: int) -> list[bool]:
        stage = ExcludeTopChoices(probability=0.3, threshold=0.1, seed=(seed, 0))
        return [stage.sample(candidates((0.8, 0.2))).ids.size == 1 for _ in range(2000)]

    assert left_out(1) == left_out(1)
    assert left_out(1) != left_out(2)
    assert 500 < sum(left_out(1)) < 700


def test_mirostat_keeps_the_surprise_near_its_target() -> None:
    generator = np.random.default_rng(5)
    stage = Mirostat(target=3.0, rate=0.1)
    model = Candidates(ids=np.arange(1000), scores=-np.log(1 + np.arange(1000.0)))
    surprises = []
    for _ in range(2000):
        left = stage.sample(model)
        shares = left.probabilities
        place = generator.choice(shares.size, p=shares)
        surprises.append(-np.log2(shares[place]))
        stage.chosen(int(left.ids[place]))
    assert np.mean(surprises[200:]) == pytest.approx(3.0, abs=0.15)


@given(
    logits=st.lists(st.floats(-20, 20, width=32), min_size=1, max_size=60),
    k=st.integers(1, 60),
    p=st.floats(0.01, 0.999),
    seed=st.integers(0, 100),
)
def test_every_filter_leaves_some_and_top_k_exactly_k(
    logits: list[float], k: int, p: float, seed: int
) -> None:
    generator = np.random.default_rng(seed)
    allowed = generator.random(len(logits)) < 0.8
    allowed[generator.integers(len(logits))] = True
    row = np.asarray(logits, np.float32)
    start = Candidates.of(row, allowed)
    assert filters.top_k(start, k).ids.size == min(k, int(allowed.sum()))
    makers: list[Any] = [
        *(filters.top_p, filters.min_p, filters.typical, filters.tail_free, filters.top_a),
        *(filters.top_n_sigma, filters.exclude_top_choices, filters.mirostat, filters.scale),
    ]
    for make in makers:
        left = make(start, p)
        assert left.ids.size
        assert set(left.ids) <= set(np.flatnonzero(allowed))
        assert np.isfinite(left.scores).all()


def test_top_p_of_a_flat_vocabulary_needs_more_than_its_head() -> None:
    flat = Candidates(ids=np.arange(5000), scores=np.zeros(5000))
    assert filters.top_p(flat, 0.9).ids.size == 4500
    assert list(filters.top_p(flat, 0.9).ids) == list(range(4500))


class EvenOnly:
    """A constraint: even ids; complete after three."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def allowed(self) -> Any:
        return np.arange(8) % 2 == 0

    def accept(self, token: int) -> None:
        self.taken.append(token)

    @property
    def is_complete(self) -> bool:
        return len(self.taken) == 3


def test_a_chain_runs_in_its_order_and_hears_what_was_chosen() -> None:
    logits = np.log(np.asarray([[0.3, 0.3, 0.2, 0.1, 0.06, 0.02, 0.01, 0.01]], np.float32))
    constraint = EvenOnly()
    chain = SamplerChain(
        [Penalties(repetition=50), Filter(lambda found: filters.top_k(found, 2))],
        [1],
        allowed=np.ones(8, np.bool_),
        constraint=constraint,
    )
    kept = []
    for token in (0, 2, 4):
        row = chain.combine(logits)
        kept.append(list(np.flatnonzero(row > -np.inf)))
        chain.accept(token)
    assert kept == [[0, 2], [2, 4], [4, 6]]
    assert constraint.taken == [0, 2, 4]
    assert chain.is_complete
    # In the other order the two likeliest stay, and then lose.
    other = SamplerChain(
        [Filter(lambda found: filters.top_k(found, 2)), Penalties(repetition=50)],
        [0],
        allowed=np.ones(8, np.bool_),
    )
    row = other.combine(logits)
    assert list(np.flatnonzero(row > -np.inf)) == [0, 1]
    assert row[0] < row[1]
