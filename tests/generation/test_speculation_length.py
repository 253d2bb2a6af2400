"""The choice of a draft's length by given times: no model, no clock."""

import pytest

from bluejay.generation.speculation_length import (
    LOADING_SECONDS,
    SIZES,
    STALE_AFTER,
    Acceptance,
    Outlook,
    PassTimes,
    choose_size,
    expected_ids,
    missed_saving,
)


def measured(step: float, passes: dict[int, float], *, loaded: bool = True) -> PassTimes:
    times = PassTimes()
    times.observe_steps(step * 8, 8)
    for size, seconds in passes.items():
        times.observe_pass(size, seconds)
    times.loaded = set(SIZES) if loaded else set()
    return times


def chosen(
    times: PassTimes, probability: float, *, counts_loading: bool = True, **given: int
) -> int:
    told = {"drafted": 15, "room": 1000, "remaining": 1000, **given}
    outlook = Outlook(probability=probability, **told)
    return choose_size(outlook, times, counts_loading=counts_loading)


# SmolLM2's on two cores, in milliseconds: 5.1 a step, and passes that grow slowly.
SMOLLM2 = {2: 6.0, 4: 7.0, 8: 9.5, 16: 15.0}


def test_expected_ids_are_the_sum_of_the_series() -> None:
    assert expected_ids(0.5, 3) == 1 + 0.5 + 0.25 + 0.125
    assert expected_ids(1.0, 15) == 16
    assert expected_ids(0.0, 15) == 1


@pytest.mark.parametrize(
    ("probability", "size"), [(0.0, 1), (0.2, 1), (0.3, 2), (0.6, 4), (0.8, 8), (0.97, 16)]
)
def test_surer_drafts_are_longer(probability: float, size: int) -> None:
    assert chosen(measured(5.1, SMOLLM2), probability) == size


def test_the_choice_is_the_best_rate_of_all_sizes() -> None:
    """Against a plain search."""
    times = measured(5.1, SMOLLM2)
    for percent in range(0, 100, 3):
        p = percent / 100
        rates = {size: expected_ids(p, size - 1) / SMOLLM2[size] for size in SIZES}
        best = max(rates, key=lambda size: rates[size])
        pays = rates[best] * 0.95 > 1 / 5.1
        assert chosen(times, p) == (best if pays else 1), p


def test_passes_that_cost_as_much_as_their_steps_never_pay() -> None:
    """As where products of several rows take several times as long."""
    assert chosen(measured(1.0, {size: float(size) for size in SIZES}), 0.99) == 1


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({"drafted": 0}, 1),
        ({"drafted": 1}, 2),
        ({"drafted": 3}, 4),
        ({"room": 1}, 1),
        ({"room": 9}, 8),
        ({"remaining": 1}, 1),
        ({"remaining": 2}, 2),
        ({"remaining": 4}, 4),
    ],
)
def test_a_draft_fits_into_what_is_left(given: dict[str, int], size: int) -> None:
    assert chosen(measured(5.1, SMOLLM2), 0.97, **given) == size


def test_without_a_measured_step_nothing_is_chosen() -> None:
    assert (
        choose_size(
            Outlook(probability=1.0, drafted=15, room=99, remaining=99),
            PassTimes(),
            counts_loading=False,
        )
        == 1
    )


def test_a_program_is_loaded_only_for_more_than_it_costs() -> None:
    """At 5 ms a token and 0.5 s of loading: not for 64 tokens, but for 1,000."""
    for remaining, size in ((64, 1), (1000, 16)):
        times = measured(0.005, {}, loaded=False)
        assert times.loading_seconds == LOADING_SECONDS
        assert chosen(times, 0.95, remaining=remaining) == size
    assert chosen(measured(0.005, {}, loaded=False), 0.95, remaining=64, counts_loading=False) > 1


def test_what_was_missed_in_earlier_texts_loads_a_program_in_the_end() -> None:
    """Texts of 64 tokens at 5 ms, of which a program saves 3.5 ms each: the third pays for it."""
    times = measured(0.005, {}, loaded=False)
    outlook = Outlook(probability=0.95, drafted=15, room=1000, remaining=64)
    saving = missed_saving(outlook, times)
    assert 0.003 < saving < 0.005
    texts = 0
    while choose_size(outlook, times, counts_loading=True) == 1:
        times.missed_seconds += 64 * saving
        texts += 1
    assert texts == int(LOADING_SECONDS / (64 * saving))
    times.observe_loading(16)
    assert times.missed_seconds == 0
    assert missed_saving(outlook, times) == 0, "no other size is better"


def test_nothing_is_missed_where_passes_cost_as_much_as_their_steps() -> None:
    times = measured(1.0, {size: float(size) for size in SIZES}, loaded=False)
    assert missed_saving(Outlook(probability=0.99, drafted=15, room=99, remaining=99), times) == 0


def test_a_loaded_program_is_used_unless_a_better_one_saves_its_loading() -> None:
    times = measured(0.005, {4: 0.007})
    times.loaded = {4}
    assert chosen(times, 0.95, remaining=100) == 4
    assert chosen(times, 0.95, remaining=5000) == 16


def test_unmeasured_sizes_follow_the_measured_one() -> None:
    times = measured(1.0, {4: 4.0})
    assert times.of(1) == 1.0
    assert times.of(8) == 8.0
    assert times.of(2) == 2.0


def test_long_calls_tell_the_cost_of_a_step() -> None:
    """A call of one step carries the call's own overhead."""
    times = PassTimes()
    times.observe_steps(3.0, 1)
    assert times.step == 3.0
    times.observe_steps(8.0, 8)
    times.observe_steps(3.0, 1)
    assert times.step == 1.0


def test_one_disturbed_reading_changes_nothing() -> None:
    times = measured(1.0, {})
    for seconds in (2.0, 2.1, 50.0):
        times.observe_pass(4, seconds)
    assert times.of(4) == 2.1


def test_times_of_an_unused_size_lapse_so_that_it_is_tried_again() -> None:
    times = measured(1.0, {4: 50.0})
    assert chosen(times, 0.9, drafted=3) == 1
    times.observe_ids(STALE_AFTER)
    assert chosen(times, 0.9, drafted=3) == 4


def test_acceptance_is_learned_for_each_kind_and_forgets() -> None:
    acceptance = Acceptance((2, 6), (0.25, 0.75))
    assert acceptance.probability(2) == acceptance.probability(5) == 0.25
    assert acceptance.probability(40) == 0.75
    for _ in range(60):
        acceptance.observe(3, right=3, failed=True)
    assert acceptance.probability(2) == pytest.approx(0.75, abs=0.02)
    assert acceptance.probability(7) == 0.75
    for _ in range(300):
        acceptance.observe(3, right=0, failed=True)
    assert acceptance.probability(2) < 0.02


def test_coverage_is_the_share_of_drafted_ids_among_the_last() -> None:
    acceptance = Acceptance((2,), (0.5,))
    assert acceptance.coverage == 0
    for _ in range(200):
        acceptance.observe_ids(4, covered=3)
    assert acceptance.coverage == pytest.approx(0.75, abs=0.01)
