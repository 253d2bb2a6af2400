"""Thousands of requests on a simulated device that checks every step it is told."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from random import Random

import pytest
from jaxtyping import config

from bluejay.generation.engine_requests import EngineLimits, EngineRequest, QueueFullError
from bluejay.generation.scheduled_steps import Decode, Idle, ScheduledRequest, Step
from bluejay.generation.scheduler import Scheduler
from simulated_device import SimulatedDevice, random_prompt

LIMITS = EngineLimits(num_slots=6, context_length=700, queued_requests=24, queued_tokens=6_000)


@dataclass
class Traffic:
    """Random arrivals, cancels, failures and deadlines, and a note of everything that happens."""

    random: Random
    scheduler: Scheduler = field(default_factory=lambda: Scheduler(LIMITS))
    submitted: list[ScheduledRequest] = field(default_factory=list)
    live: list[ScheduledRequest] = field(default_factory=list)
    begun: dict[ScheduledRequest, None] = field(default_factory=dict)
    ends: dict[str, Counter[ScheduledRequest]] = field(default_factory=dict)
    num_rejected: int = 0
    now: float = 0.0

    def __post_init__(self) -> None:
        self.device = SimulatedDevice(
            self.scheduler,
            num_slots=LIMITS.num_slots,
            context_length=LIMITS.context_length,
            num_new=lambda request: self.random.randint(
                min(1, request.max_tokens), request.max_tokens
            ),
        )
        self.ends = {
            "finished": self.device.finished,
            "cancelled": Counter(),
            "failed": Counter(),
            "expired": Counter(),
        }

    def arrive(self) -> None:
        """One request, refused where the queue is full."""
        random = self.random
        k = random.choices([1, 2, 4], [20, 3, 1])[0]
        earlier = [one.request.prompts[0] for one in self.submitted[-6:]]
        request = EngineRequest(
            prompts=[random_prompt(random, earlier, longest=600) for _ in range(k)],
            max_tokens=random.choice([0, 1, 5, 30, 100]),
            combine=(lambda logits: logits[0]) if k > 1 else None,
            scores_prompt=k == 1 and random.random() < 0.05,
            tenant=random.choices(["ann", "ben", "eve"], [6, 1, 1])[0],
            adapter=None if random.random() < 0.9 else "poems",
        )
        deadline = self.now + 50 if random.random() < 0.2 else None
        try:
            scheduled = self.scheduler.submit(request, deadline=deadline)
        except QueueFullError:
            self.num_rejected += 1
            return
        self.submitted.append(scheduled)
        self.live.append(scheduled)

    def hang_up(self) -> None:
        """Now and then somebody does, wherever the request is."""
        self.live = [scheduled for scheduled in self.live if scheduled.phase != "ended"]
        if self.live and self.random.random() < 0.03:
            self.scheduler.cancel(scheduled := self.random.choice(self.live))
            self.ends["cancelled"][scheduled] += 1

    def break_down(self) -> None:
        """Now and then a row does, and leaves what nobody may read."""
        running = [one for one in self.live if one.phase in ("prefill", "decode")]
        if running and self.random.random() < 0.005:
            self.scheduler.fail(scheduled := self.random.choice(running))
            self.device.rows[list(scheduled.slots)] = -1
            self.ends["failed"][scheduled] += 1

    def step(self) -> Step:
        """One step of the device."""
        self.now += 1
        self.ends["expired"].update(self.scheduler.expire(self.now))
        step = self.scheduler.next_step()
        served = served_by(step)
        self.begun |= dict.fromkeys(served)
        assert not any(scheduled in gone for scheduled in served for gone in self.ends.values())
        self.device.run(step, steps=self.random.randint(1, 20), meanwhile=self.hang_up)
        self.break_down()
        return step


def served_by(step: Step) -> tuple[ScheduledRequest, ...]:
    """The requests that a step works for."""
    if isinstance(step, Idle):
        return ()
    return step.requests if isinstance(step, Decode) else (step.request,)


@pytest.fixture(scope="module")
def unchecked_types() -> Iterator[None]:
    """Types of arguments are checked by all other tests, at three quarters of the time here."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)


@pytest.fixture(scope="module")
def traffic(unchecked_types: None) -> Traffic:
    """10,000 requests, all of which have passed what the device checks."""
    traffic = Traffic(Random(7))
    while len(traffic.submitted) < 10_000:
        for _ in range(traffic.random.choice([0, 0, 0, 0, 0, 0, 1, 2])):
            traffic.arrive()
        traffic.step()
    while not isinstance(traffic.step(), Idle):
        pass
    return traffic


def test_every_request_ends_exactly_once(traffic: Traffic) -> None:
    ends: Counter[ScheduledRequest] = sum(traffic.ends.values(), Counter())
    assert set(ends) == set(traffic.submitted)
    assert set(ends.values()) == {1}
    assert all(len(gone) > 50 for gone in traffic.ends.values())


def test_nothing_is_left_and_the_counts_are_right(traffic: Traffic) -> None:
    scheduler, counts = traffic.scheduler, traffic.scheduler.counts
    assert scheduler.unfinished == ()
    left = (scheduler.slots_in_use, scheduler.queued_requests, scheduler.queued_tokens)
    assert left == (0, 0, 0)
    assert {outcome: getattr(counts, outcome) for outcome in traffic.ends} == {
        outcome: len(gone) for outcome, gone in traffic.ends.items()
    }
    assert counts.rejected == traffic.num_rejected > 50
    finished = traffic.device.finished
    assert counts.new_tokens > sum(scheduled.num_new for scheduled in finished) > 50_000
    assert all(scheduled.num_done == scheduled.num_tokens for scheduled in finished)
    # Without reuse, copies and rows used in place the device would have had nothing to check.
    assert counts.cached_prompt_tokens > counts.prompt_tokens / 10
    num_helped = sum(one.num_cached > 0 for one in traffic.begun)
    assert 500 < traffic.device.num_copies < num_helped - 500


def test_first_come_is_first_served_within_a_tenant(traffic: Traffic) -> None:
    order = {scheduled: number for number, scheduled in enumerate(traffic.submitted)}
    for tenant in ("ann", "ben", "eve"):
        begun = [order[one] for one in traffic.begun if one.request.tenant == tenant]
        assert len(begun) > 500
        assert begun == sorted(begun)
