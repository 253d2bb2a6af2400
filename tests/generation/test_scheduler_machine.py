"""Any order of calls: nothing is lost, nothing runs twice, and no row has two owners."""

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from bluejay.generation.engine_requests import EngineLimits, EngineRequest, QueueFullError
from bluejay.generation.scheduled_steps import CopyPrefix, Decode, PrefillChunk, ScheduledRequest
from bluejay.generation.scheduler import Scheduler
from simulated_device import SimulatedDevice

LIMITS = EngineLimits(num_slots=3, context_length=256, queued_requests=4, queued_tokens=600)
LENGTHS = st.sampled_from([1, 15, 16, 17, 64, 65, 100, 200])


class SchedulerMachine(RuleBasedStateMachine):
    """Submits, steps, reports, cancels, finishes and fails, with a device that checks."""

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(LIMITS)
        self.device = SimulatedDevice(self.scheduler, num_slots=3, context_length=256)
        self.submitted: list[ScheduledRequest] = []
        self.ended: set[ScheduledRequest] = set()
        self.now = 0

    @rule(
        lengths=st.lists(LENGTHS, min_size=1, max_size=3),
        max_tokens=st.sampled_from([0, 1, 9, 30]),
        tenant=st.sampled_from(["ann", "ben"]),
        patience=st.none() | st.integers(0, 5),
    )
    def submit(
        self, lengths: list[int], max_tokens: int, tenant: str, patience: int | None
    ) -> None:
        request = EngineRequest(
            prompts=[range(length) for length in lengths],
            max_tokens=max_tokens,
            tenant=tenant,
            combine=(lambda scores: scores[0]) if len(lengths) > 1 else None,
        )
        before = self.scheduler.queued_requests, self.scheduler.queued_tokens
        deadline = None if patience is None else float(self.now + patience)
        try:
            self.submitted.append(self.scheduler.submit(request, deadline=deadline))
        except QueueFullError:
            assert before[0] == 4 or before[1] + sum(lengths) > 600
        else:
            assert self.scheduler.queued_requests == before[0] + 1 <= 4
            assert self.scheduler.queued_tokens == before[1] + sum(lengths) <= 600

    @rule(steps=st.integers(0, 8), data=st.data(), hang_up=st.booleans())
    def step(self, steps: int, data: st.DataObject, hang_up: bool) -> None:
        """A step, during which somebody may hang up."""
        step = self.scheduler.next_step()
        if isinstance(step, PrefillChunk | CopyPrefix):
            assert step.request not in self.ended
        if isinstance(step, Decode):
            assert self.ended.isdisjoint(step.requests)
        self.device.run(
            step, steps=steps, meanwhile=lambda: self.cancel_any(data) if hang_up else None
        )

    def cancel_any(self, data: st.DataObject) -> None:
        """Of those that are there, or were."""
        if self.submitted:
            scheduled = data.draw(st.sampled_from(self.submitted))
            self.scheduler.cancel(scheduled)
            self.ended.add(scheduled)

    @precondition(lambda self: self.submitted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.cancel_any(data)

    @precondition(lambda self: self.submitted)
    @rule(data=st.data(), end=st.sampled_from(["finish", "fail"]))
    def end(self, data: st.DataObject, end: str) -> None:
        """By a stop id or by a fault, wherever it is; a second end has no effect."""
        scheduled = data.draw(st.sampled_from(self.submitted))
        getattr(self.scheduler, end)(scheduled)
        self.ended.add(scheduled)

    @precondition(lambda self: self.submitted)
    @rule()
    def begin_again(self) -> None:
        """As after a fault of the engine: what ran has failed, what waited waits on."""
        counts, unfinished = self.scheduler.counts, self.scheduler.unfinished
        queued = [one for one in self.submitted if one.phase == "queued"]
        self.scheduler = self.device.scheduler = self.scheduler.successor()
        assert self.scheduler.slots_in_use == self.scheduler.queued_requests == 0
        assert self.scheduler.counts.failed == counts.failed + len(unfinished) - len(queued)
        self.ended |= {*unfinished} - {*queued}
        for old in queued:
            again = self.scheduler.submit(old.request, deadline=old.deadline)
            self.submitted[self.submitted.index(old)] = again
        self.scheduler.cancel(unfinished[0]) if unfinished else None  # too late: without effect

    @rule(later=st.integers(1, 3))
    def wait(self, later: int) -> None:
        """Queued requests run out of patience, those that run do not."""
        self.now += later
        queued = [one for one in self.submitted if one.phase == "queued"]
        late = [one for one in queued if one.deadline is not None and one.deadline < self.now]
        expired = self.scheduler.expire(self.now)
        assert set(expired) == set(late)
        self.ended |= set(expired)

    @invariant()
    def nothing_is_lost(self) -> None:
        unfinished, counts = self.scheduler.unfinished, self.scheduler.counts
        finished = set(self.device.finished)
        assert set(unfinished) | self.ended | finished == set(self.submitted)
        assert self.ended.isdisjoint(unfinished)
        assert finished.isdisjoint(unfinished)
        num_ended = counts.finished + counts.cancelled + counts.failed + counts.expired
        assert num_ended + len(unfinished) == len(self.submitted)

    @invariant()
    def no_row_is_shared(self) -> None:
        owned = [slot for scheduled in self.scheduler.unfinished for slot in scheduled.slots]
        assert len(set(owned)) == len(owned) <= self.scheduler.slots_in_use <= 3

    def teardown(self) -> None:
        """What is left runs to its end, and all rows are free."""
        for _ in range(1_000):
            step = self.scheduler.next_step()
            if not self.scheduler.unfinished:
                break
            self.device.run(step)
        assert self.scheduler.unfinished == ()
        assert self.scheduler.slots_in_use == 0
        assert (self.scheduler.queued_requests, self.scheduler.queued_tokens) == (0, 0)


TestSchedulerMachine: Any = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
