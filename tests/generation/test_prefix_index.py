"""A prefix is used again exactly where both prompts are cut at the same places."""

from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bluejay.generation.engine_requests import EngineLimits, EngineRequest
from bluejay.generation.prefix_index import PrefixIndex, prefix_keys
from bluejay.generation.prompt_chunks import chunks
from bluejay.generation.scheduled_steps import Idle, ScheduledRequest
from bluejay.generation.scheduler import Scheduler
from simulated_device import SimulatedDevice

# Lengths around the ends of chunks, where there is something to get wrong.
LENGTHS = st.one_of(
    st.integers(1, 600),
    st.builds(lambda unit, off: max(1, 16 * unit + off), st.integers(0, 36), st.integers(-1, 1)),
)


def new_device() -> SimulatedDevice:
    """An engine of four empty rows."""
    limits = EngineLimits(num_slots=4, context_length=700)
    return SimulatedDevice(Scheduler(limits), num_slots=4, context_length=700)


def run(
    device: SimulatedDevice,
    ids: Sequence[int],
    *,
    tenant: str = "ann",
    adapter: str | None = None,
    scores: bool = False,
) -> ScheduledRequest:
    """A request for one id, alone, to its end."""
    request = EngineRequest(
        prompts=[ids], max_tokens=1, tenant=tenant, adapter=adapter, scores_prompt=scores
    )
    scheduled = device.scheduler.submit(request)
    while not isinstance(step := device.scheduler.next_step(), Idle):
        device.run(step)
    return scheduled


def prompts(*lengths: int, common: int) -> list[list[int]]:
    """Prompts of these lengths, of which at most `common` first ids are the same."""
    return [
        [
            position if position < common else 1_000 * (number + 1) + position
            for position in range(n)
        ]
        for number, n in enumerate(lengths)
    ]


def num_equal_calls(earlier: Sequence[int], later: Sequence[int]) -> int:
    """How many first calls of both prompts are the same: place, size, ids, and nothing padded."""
    for number, ((begin, size), other) in enumerate(
        zip(chunks(len(later)), chunks(len(earlier)), strict=False)
    ):
        piece = later[begin : begin + size]
        if (begin, size) != other or piece != earlier[begin : begin + size] or len(piece) < size:
            return number
    return min(len(chunks(len(later))), len(chunks(len(earlier))))


def num_reusable(earlier: Sequence[int], later: Sequence[int]) -> int:
    """Positions of those calls, the last of the later prompt never among them."""
    count = min(num_equal_calls(earlier, later), len(chunks(len(later))) - 1)
    return sum(size for _, size in chunks(len(later))[:count])


@settings(max_examples=200)
@given(LENGTHS, LENGTHS, LENGTHS)
@example(320, 576, 600)  # 256 + 64 and 256 + 256 + 64: the first call alone is common
@example(64, 64, 64)  # one call, and it is the last
@example(255, 256, 600)  # one id more, and no call is common
def test_two_prompts_share_what_both_would_compute_by_the_same_calls(
    first: int, second: int, common: int
) -> None:
    earlier, later = prompts(first, second, common=common)
    device = new_device()
    assert run(device, earlier).num_cached == 0
    assert run(device, later).num_cached == num_reusable(earlier, later)


@settings(max_examples=60)
@given(st.lists(LENGTHS, min_size=4, max_size=4), LENGTHS)
def test_the_longest_of_all_kept_prefixes_is_found(lengths: list[int], common: int) -> None:
    *earlier, later = prompts(*lengths, common=common)
    device = new_device()
    for ids in earlier:
        run(device, ids)
    expected = max(num_reusable(ids, later) for ids in earlier)
    assert run(device, later).num_cached == expected


@given(LENGTHS, LENGTHS, LENGTHS)
def test_keys_are_equal_for_equal_calls_and_for_no_others(
    first: int, second: int, common: int
) -> None:
    one, other = prompts(first, second, common=common)
    keys = [prefix_keys(ids, tenant="ann", adapter=None) for ids in (one, other)]
    shared = set(keys[0]) & set(keys[1])
    assert len(shared) == num_equal_calls(one, other)
    whole = [sum(b + size <= n for b, size in chunks(n)) for n in (first, second)]
    assert [len(found) for found in keys] == whole


@pytest.mark.parametrize(
    ("tenant", "adapter", "num_cached"),
    [("ann", None, 256), ("ben", None, 0), ("ann", "poems", 0), ("", None, 0), ("ann", "", 0)],
)
def test_another_tenant_or_adapter_finds_nothing(
    tenant: str, adapter: str | None, num_cached: int
) -> None:
    device = new_device()
    run(device, range(300))
    assert run(device, range(257), tenant=tenant, adapter=adapter).num_cached == num_cached


def test_tenant_and_adapter_cannot_be_taken_for_one_another() -> None:
    named = [("a", "b"), ("a', 'b", None), ("ab", ""), ("", "ab"), ("a", "None"), ("a", None)]
    keys = {prefix_keys(range(16), tenant=tenant, adapter=adapter) for tenant, adapter in named}
    assert len(keys) == len(named)


def test_scored_prompts_neither_reuse_nor_leave_anything() -> None:
    device = new_device()
    assert run(device, range(300), scores=True).num_cached == 0
    assert run(device, range(300)).num_cached == 0
    assert run(device, range(300), scores=True).num_cached == 0
    assert run(device, range(300)).num_cached == 288


def test_what_was_decoded_is_not_part_of_a_prefix() -> None:
    device = new_device()
    first = device.scheduler.submit(EngineRequest(prompts=[range(64)], max_tokens=200))
    while not isinstance(step := device.scheduler.next_step(), Idle):
        device.run(step)
    assert first.num_new == 200
    assert run(device, range(256), tenant="").num_cached == 0
    assert run(device, range(65), tenant="").num_cached == 64


HELD = st.lists(st.integers(0, 2), max_size=4)


@given(st.lists(st.tuples(st.integers(0, 2), HELD, st.integers(0, 4)), max_size=12), HELD)
def test_rows_forget_without_trace(
    changes: list[tuple[int, list[int], int]], asked: list[int]
) -> None:
    def keys(path: Sequence[int]) -> list[bytes]:
        return [bytes(path[: count + 1]) for count in range(len(path))]

    index = PrefixIndex(3)
    held: list[list[int]] = [[], [], []]
    for slot, path, count in changes:
        index.keep(slot, 0)
        for number, key in enumerate(keys(path)):
            index.append(slot, key, end=16 * (number + 1))
        index.keep(slot, count)
        held[slot] = path[:count]
        if count == 4:
            index.copy(slot, (slot + 1) % 3, len(path) // 2)
            held[(slot + 1) % 3] = path[: len(path) // 2]
    shared = [
        max(n for n in range(len(asked) + 1) if asked[:n] == path[:n] and n <= len(path))
        for path in held
    ]
    count, holders = index.longest(keys(asked))
    assert count == max(shared)
    assert set(holders) == {slot for slot in range(3) if count and shared[slot] == count}
    assert [index.common(slot, keys(asked)) for slot in range(3)] == shared
    assert [index.length(slot) for slot in range(3)] == [16 * len(path) for path in held]
