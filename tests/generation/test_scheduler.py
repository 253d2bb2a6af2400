"""Turns, bounds, slots and ends, one by one."""

import subprocess
import sys
from collections.abc import Sequence

import pytest

from bluejay.core.errors import UsageError
from bluejay.generation.engine_requests import (
    EngineLimits,
    EngineRequest,
    PromptProgress,
    QueueFullError,
)
from bluejay.generation.prompt_chunks import chunks
from bluejay.generation.scheduled_steps import (
    CopyPrefix,
    Decode,
    Idle,
    PrefillChunk,
    ScheduledRequest,
    Step,
)
from bluejay.generation.scheduler import Scheduler, SchedulingPolicy
from simulated_device import SimulatedDevice


class Bench:
    """A scheduler, a device, and the steps that were taken."""

    def __init__(self, num_slots: int = 4, policy: SchedulingPolicy | None = None) -> None:
        limits = EngineLimits(num_slots=num_slots, queued_requests=1_000)
        self.scheduler = Scheduler(limits, policy)
        self.device = SimulatedDevice(self.scheduler, num_slots=num_slots, context_length=2048)
        self.steps: list[Step] = []

    def submit(
        self, *prompts: Sequence[int], max_tokens: int = 4, tenant: str = ""
    ) -> ScheduledRequest:
        """A group where there are several prompts."""
        combine = (lambda logits: logits[0]) if len(prompts) > 1 else None
        return self.scheduler.submit(
            EngineRequest(prompts=prompts, max_tokens=max_tokens, combine=combine, tenant=tenant)
        )

    def step(self) -> Step:
        """One step, carried out."""
        self.steps.append(self.scheduler.next_step())
        self.device.run(self.steps[-1])
        return self.steps[-1]

    def run(self, scheduled: ScheduledRequest | None = None) -> list[Step]:
        """All steps until the request has ended, or all have; those that were taken."""
        begin = len(self.steps)
        while not isinstance(self.step(), Idle) and (not scheduled or scheduled.phase != "ended"):
            pass
        return self.steps[begin:]

    def run_prompts(self, scheduled: ScheduledRequest) -> list[Step]:
        """All steps until the request decodes."""
        begin = len(self.steps)
        while scheduled.phase in ("queued", "prefill"):
            self.step()
        return self.steps[begin:]


def begun(steps: Sequence[Step]) -> list[ScheduledRequest]:
    """Requests whose prompts were read in these steps, by their first."""
    chunks_read = [step for step in steps if isinstance(step, PrefillChunk)]
    return list(dict.fromkeys(step.request for step in chunks_read))


def ids(length: int, first: int = 0) -> range:
    """A prompt that shares no beginning with one of another `first`."""
    return range(first, first + length)


def test_a_prompt_is_read_in_its_chunks_and_then_decoded() -> None:
    bench = Bench()
    scheduled = bench.submit(ids(300), max_tokens=4)
    *reading, decode, idle = bench.run()
    assert [(step.begin, step.size, step.is_last) for step in reading] == [
        (0, 256, False),
        (256, 16, False),
        (272, 16, False),
        (288, 16, True),
    ]
    assert [list(step.ids) for step in reading][-1] == list(range(288, 300))
    assert decode == Decode(requests=(scheduled,), max_steps=3)  # the first id needs no step
    assert idle == Idle()


def test_a_request_for_no_ids_only_reads() -> None:
    bench = Bench()
    scheduled = bench.submit(ids(20), max_tokens=0)
    assert not any(isinstance(step, Decode) for step in bench.run())
    assert scheduled.progress.num_done == 20
    assert bench.scheduler.counts.finished == 1


def test_a_long_prompt_stops_nobody_for_longer_than_a_chunk() -> None:
    bench = Bench(num_slots=8)
    for n in range(3):
        bench.run_prompts(bench.submit(ids(20, 5_000 * n), max_tokens=200, tenant=f"t{n}"))
    long = bench.submit(ids(2_000, 30_000), tenant="t3")
    short = bench.submit(ids(20, 900), tenant="t0")
    steps = bench.run_prompts(long)
    kinds = [type(step) for step in steps]
    assert kinds.count(PrefillChunk) == len(chunks(2_000)) + len(chunks(20))
    assert kinds[::2] == [Decode] * len(kinds[::2])
    assert kinds[1::2] == [PrefillChunk] * len(kinds[1::2])
    assert all(step.max_steps == 1 for step in steps[::2])
    # The short prompt of somebody else waits for one chunk, not for all of them.
    assert [step.request is short for step in steps[1:10:2]] == [False, True, False, True, False]


@pytest.mark.parametrize("steps_per_chunk", [1, 3])
def test_the_share_of_decoding_is_the_policys(steps_per_chunk: int) -> None:
    bench = Bench(policy=SchedulingPolicy(steps_per_chunk=steps_per_chunk))
    writer = bench.submit(ids(20), max_tokens=500)
    bench.run_prompts(writer)
    reader = bench.submit(ids(1_000, 5_000), tenant="other")
    before = writer.num_new
    bench.run_prompts(reader)
    assert writer.num_new - before == steps_per_chunk * len(chunks(1_000))


def test_tenants_take_turns() -> None:
    bench = Bench(num_slots=1)
    greedy = [bench.submit(ids(20, 100 * n), tenant="greedy") for n in range(5)]
    modest = bench.submit(ids(20, 7_000), tenant="modest")
    assert begun(bench.run()) == [greedy[0], modest, *greedy[1:]]


def test_a_group_is_served_among_singles_that_never_cease() -> None:
    bench = Bench(num_slots=4)
    for n in range(8):
        bench.submit(ids(20, 100 * n), max_tokens=30, tenant=f"t{n % 3}")
    for _ in range(20):
        bench.step()
    earlier = begun(bench.steps)
    group = bench.submit(*(ids(40, 5_000 + n) for n in range(4)), tenant="group")
    for n in range(1_000):
        bench.submit(ids(20, 10_000 + 100 * n), max_tokens=30, tenant=f"t{n % 3}")
        bench.step()
        if group.phase != "queued":
            break
    overtakers = set(begun(bench.steps)) - {*earlier, group}
    assert len(overtakers) <= 3, "each other tenant has its turn once before the group's"
    bench.run(group)
    assert group in bench.device.finished


def test_free_slots_are_kept_for_the_group_whose_turn_it_is() -> None:
    bench = Bench(num_slots=2)
    single = bench.submit(ids(20), max_tokens=50)
    bench.run_prompts(single)
    group = bench.submit(ids(20, 100), ids(20, 200))
    later = bench.submit(ids(20, 300), tenant="other")
    assert begun(bench.run(single)) == []
    assert begun(bench.run()) == [group, later]


def test_the_device_works_for_longer_when_nobody_waits() -> None:
    bench = Bench(num_slots=2, policy=SchedulingPolicy(steps_when_waiting=4, most_steps=16))
    first, second = (bench.submit(ids(20, 100 * n), max_tokens=100) for n in range(2))
    bench.run_prompts(second)
    assert bench.step() == Decode(requests=(first, second), max_steps=16)
    waiting = bench.submit(ids(20, 200))
    assert bench.step() == Decode(requests=(first, second), max_steps=4)
    bench.scheduler.cancel(waiting)
    while max(first.remaining, second.remaining) > 16:
        bench.step()
    most = max(first.remaining, second.remaining)
    assert bench.step() == Decode(requests=(first, second), max_steps=most)


def test_a_slot_that_somebody_waits_for_is_free_at_its_last_id() -> None:
    bench = Bench(num_slots=2)
    long, short = bench.submit(ids(20), max_tokens=100), bench.submit(ids(20, 100), max_tokens=4)
    bench.run_prompts(short)
    waiting = bench.submit(ids(20, 200))
    assert bench.step() == Decode(requests=(long, short), max_steps=3)
    assert short.phase == "ended"
    assert begun([bench.step()]) == [waiting]


def test_the_second_of_two_equal_prompts_computes_its_last_chunk() -> None:
    bench = Bench()
    first, second = bench.submit(ids(300), max_tokens=50), bench.submit(ids(300), max_tokens=50)
    bench.run_prompts(second)
    [copy] = [step for step in bench.steps if isinstance(step, CopyPrefix)]
    assert copy == CopyPrefix(
        request=second, source=first.slots[0], target=second.slots[0], length=288
    )
    mine = [one for one in bench.steps if isinstance(one, PrefillChunk) and one.request is second]
    assert [(step.begin, step.size) for step in mine] == [(288, 16)]
    assert bench.steps[bench.steps.index(copy) + 1] is mine[0], "it follows the copy at once"
    assert second.progress == PromptProgress(num_done=300, num_tokens=300, num_cached=288)
    assert bench.scheduler.counts.cached_prompt_tokens == 288
    assert bench.scheduler.counts.prompt_tokens == 600


def test_two_equal_prompts_of_a_group_are_computed_once() -> None:
    bench = Bench()
    group = bench.submit(ids(300), ids(300))
    kinds = [type(step) for step in bench.run_prompts(group)]
    assert kinds == [PrefillChunk] * 4 + [CopyPrefix, PrefillChunk]
    assert group.num_cached == 288


def test_a_free_slot_that_holds_the_prefix_is_used_in_place() -> None:
    bench = Bench()
    first = bench.submit(ids(300))
    bench.run()
    again = bench.submit(ids(300))
    assert [type(step) for step in bench.run_prompts(again)] == [PrefillChunk]
    assert again.slots == first.slots


def test_a_longer_text_is_kept_while_other_slots_are_empty() -> None:
    bench = Bench(num_slots=2)
    story = bench.submit(ids(1_000))
    bench.run()
    other = bench.submit([*ids(256), *ids(100, 5_000)])  # the same instructions before it
    bench.run()
    assert other.slots != story.slots
    assert other.num_cached == 256
    again = bench.submit(ids(1_000))
    bench.run()
    assert (again.slots, again.num_cached) == (story.slots, 992)


def test_the_slot_that_was_not_used_for_longest_is_taken() -> None:
    bench = Bench(num_slots=3)
    texts = [ids(40, 1_000 * n) for n in range(4)]
    slots = []
    for text in [*texts[:3], texts[0]]:  # the first is used again
        scheduled = bench.submit(text)
        bench.run()
        slots.append(scheduled.slots)
    newcomer = bench.submit(texts[3])
    bench.run()
    assert newcomer.slots == slots[1]


def test_a_slot_that_was_copied_from_counts_as_used() -> None:
    bench = Bench(num_slots=3)
    poem, story, verse = (bench.submit(ids(n, 5_000 * n)) for n in (40, 1_000, 50))
    bench.run()
    continued = bench.submit([*list(story.request.prompts[0])[:256], *ids(50)])
    bench.run()
    assert (continued.slots, continued.num_cached) == (poem.slots, 256)
    newcomer = bench.submit(ids(40, 1_000))
    bench.run()
    assert newcomer.slots == verse.slots


def test_a_prompt_of_a_group_leaves_another_the_row_that_holds_its_prefix() -> None:
    bench = Bench(num_slots=2)
    held, other = bench.submit(ids(300)), bench.submit(ids(300, 1_000))
    bench.run()
    group = bench.submit(ids(40, 2_000), ids(300))
    bench.run()
    assert group.slots == (*other.slots, *held.slots)
    assert group.num_cached == 288


def test_a_copy_that_was_cancelled_leaves_nothing_to_reuse() -> None:
    bench = Bench(num_slots=2)
    target = bench.submit(ids(300, 1_000))
    bench.run()
    source = bench.submit(ids(300), max_tokens=50)
    bench.run_prompts(source)
    cancelled = bench.submit(ids(300))
    while not isinstance(step := bench.scheduler.next_step(), CopyPrefix):
        bench.device.run(step)
    assert step.target == target.slots[0]
    bench.device.copy(step)
    bench.scheduler.cancel(cancelled)
    bench.scheduler.prefilled(step)
    again = bench.submit(ids(300, 1_000))
    bench.run(again)
    assert again.num_cached == 0


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 6, 9])
def test_a_cancelled_request_leaves_its_slots_at_the_next_step(num_steps: int) -> None:
    bench = Bench(num_slots=2)
    group = bench.submit(ids(40), ids(40, 100), max_tokens=100)
    for _ in range(num_steps):
        bench.step()
    waiting = bench.submit(ids(20, 200), ids(20, 300))
    phase = group.phase
    bench.scheduler.cancel(group)
    assert bench.step().request is waiting
    assert begun(bench.run()) == [waiting]
    assert bench.scheduler.counts.cancelled == 1
    assert phase == {0: "queued", 6: "decode", 9: "decode"}.get(num_steps, "prefill")


def test_a_report_that_comes_after_the_cancel_has_no_effect() -> None:
    bench = Bench(num_slots=1)
    cancelled = bench.submit(ids(300))
    step = bench.scheduler.next_step()
    bench.device.compute(step)
    bench.scheduler.cancel(cancelled)
    assert bench.scheduler.slots_in_use == 1  # the device may still write to it
    bench.scheduler.prefilled(step)
    for report in (bench.scheduler.finish, bench.scheduler.fail, bench.scheduler.cancel):
        report(cancelled)
    assert bench.scheduler.next_step() == Idle()
    assert bench.scheduler.slots_in_use == 0
    counts = bench.scheduler.counts
    assert (counts.cancelled, counts.finished, counts.failed) == (1, 0, 0)


def test_nothing_of_a_failed_request_is_used_again() -> None:
    bench = Bench()
    failed = bench.submit(ids(300), max_tokens=50)
    bench.run_prompts(failed)
    bench.scheduler.fail(failed)
    again = bench.submit(ids(300))
    bench.run()
    assert again.num_cached == 0
    bench.scheduler.forget_prefixes()
    once_more = bench.submit(ids(300))
    bench.run()
    assert once_more.num_cached == 0


def test_a_queued_request_expires_and_a_running_one_does_not() -> None:
    bench = Bench(num_slots=1)
    running = bench.scheduler.submit(EngineRequest(prompts=[[1]], max_tokens=9), deadline=5.0)
    queued = bench.scheduler.submit(EngineRequest(prompts=[[2]], max_tokens=9), deadline=5.0)
    patient = bench.scheduler.submit(EngineRequest(prompts=[[3]], max_tokens=9))
    bench.step()
    assert bench.scheduler.expire(5.0) == []
    assert bench.scheduler.expire(5.1) == [queued]
    assert bench.scheduler.expire(9.9) == []
    assert begun(bench.steps + bench.run()) == [running, patient]
    assert bench.scheduler.counts.expired == 1


def test_the_queue_is_bounded_by_requests() -> None:
    scheduler = Scheduler(EngineLimits(queued_requests=2))
    for _ in range(2):
        scheduler.submit(EngineRequest(prompts=[[1]], max_tokens=1))
    with pytest.raises(QueueFullError) as refusal:
        scheduler.submit(EngineRequest(prompts=[[1]], max_tokens=1))
    assert refusal.value.limit == "queued_requests"
    assert str(refusal.value) == (
        "2 requests wait already, and the queue takes 2: try again later, or start the server"
        " with a larger --queue-requests."
    )
    assert (scheduler.queued_requests, scheduler.counts.rejected) == (2, 1)
    with pytest.raises(QueueFullError, match="2 requests wait already"):
        scheduler.require_place()
    assert scheduler.counts.rejected == 2
    scheduler.cancel(scheduler.unfinished[0])
    scheduler.require_place()
    assert scheduler.counts.rejected == 2
    with pytest.raises(QueueFullError, match="2 requests wait already"):
        scheduler.require_place(num_ahead=1)
    assert scheduler.counts.rejected == 3


def test_the_queue_is_bounded_by_prompt_tokens() -> None:
    scheduler = Scheduler(EngineLimits(queued_tokens=100))
    scheduler.submit(EngineRequest(prompts=[[1] * 60], max_tokens=1))
    with pytest.raises(QueueFullError) as refusal:
        scheduler.submit(EngineRequest(prompts=[[1] * 41], max_tokens=1))
    assert refusal.value.limit == "queued_tokens"
    assert str(refusal.value) == (
        "60 prompt tokens wait already, the queue takes 100, and this request brings 41: try"
        " again later, or start the server with a larger --queue-tokens."
    )
    scheduler.submit(EngineRequest(prompts=[[1] * 40], max_tokens=1))
    assert scheduler.queued_tokens == 100


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (
            [[1] * 1_900],
            (
                "1900 prompt tokens and 512 new ones exceed the context of 2048 tokens: shorten the"
                " prompt, lower max_tokens, or start the server with a larger --context."
            ),
        ),
        ([[1], []], "The prompt is empty: give it at least one token."),
        (
            [[1]] * 9,
            (
                "A group of 9 prompts exceeds the engine's 8 slots: send fewer, or start the server"
                " with more --slots."
            ),
        ),
        (
            [[1] * 1_500] * 2,
            (
                "3000 prompt tokens exceed the whole queue of 2500 tokens: shorten the prompts, or"
                " start the server with a larger --queue-tokens."
            ),
        ),
    ],
)
def test_what_can_never_run_is_refused(prompts: list[list[int]], message: str) -> None:
    scheduler = Scheduler(EngineLimits(queued_tokens=2_500))
    combine = (lambda logits: logits[0]) if len(prompts) > 1 else None
    with pytest.raises(UsageError) as refusal:
        scheduler.submit(EngineRequest(prompts=prompts, max_tokens=512, combine=combine))
    assert str(refusal.value) == message
    assert not isinstance(refusal.value, QueueFullError)
    assert scheduler.queued_requests == 0


def test_a_prompt_and_its_ids_may_fill_the_context() -> None:
    bench = Bench()
    scheduled = bench.submit(ids(2_000), max_tokens=48)
    bench.run()
    assert scheduled.num_new == 48


def test_a_policy_of_no_steps_is_refused() -> None:
    with pytest.raises(UsageError, match="most_steps must be at least 1, not 0"):
        SchedulingPolicy(most_steps=0)


def test_the_scheduler_starts_without_jax() -> None:
    modules = ("scheduler", "engine_requests", "prompt_chunks", "scheduled_steps")
    code = "import sys\n" + "".join(f"import bluejay.generation.{name}\n" for name in modules)
    code += "print(sorted({name.split('.')[0] for name in sys.modules} & {'jax', 'jaxlib'}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"
