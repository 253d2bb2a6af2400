"""Who runs next, in which row of the cache: the host logic of an engine. Starts without JAX.

The device is asked for one step at a time:

    while True:
        expired = scheduler.expire(now)
        step = scheduler.next_step()
        ...                              # run it, without the lock
        scheduler.prefilled(step)        # after a PrefillChunk or a CopyPrefix
        scheduler.advanced(request, 3)   # ids that were chosen, the very first one included
        scheduler.finish(request)        # it has ended; or `fail`

A step is reported (or its request failed) before the next one is asked for. Nothing here is safe
to call from two threads at once: the engine holds a lock around every call, but not while the
device works, so `submit` and `cancel` may come between a step and its report.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields

from bluejay.core.errors import UsageError
from bluejay.generation.admission import require_any_place, require_fit, require_place
from bluejay.generation.engine_requests import EngineLimits, EngineRequest, QueueFullError
from bluejay.generation.fair_queue import FairQueue
from bluejay.generation.prompt_work import PromptWork
from bluejay.generation.scheduled_steps import (
    CopyPrefix,
    Decode,
    Idle,
    PrefillChunk,
    ScheduledRequest,
    Step,
)
from bluejay.generation.slots import Slots


@dataclass(frozen=True, kw_only=True)
class SchedulingPolicy:
    """How long the device may work before it asks again, in decode steps.

    `steps_per_chunk` are taken between two chunks of prompts while rows decode: more of them
    favours texts that are being written over those that wait for their first word.
    `steps_when_waiting` at most while a request waits for a slot, `most_steps` when nobody waits.
    Raises UsageError for a number below 1.
    """

    steps_per_chunk: int = 1
    steps_when_waiting: int = 4
    most_steps: int = 16

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 1:
                value = getattr(self, field.name)
                raise UsageError(f"{field.name} must be at least 1, not {value}.")


@dataclass(frozen=True, kw_only=True)
class SchedulerCounts:
    """Since the start, as EngineStatus has them; `expired` ones are not among the failed.

    `prompt_tokens` are in the cache by now, `cached_prompt_tokens` of them without being computed.
    """

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    new_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    expired: int = 0
    rejected: int = 0


_COUNTS = tuple(count.name for count in fields(SchedulerCounts))


class Scheduler:
    """Slots 0 … num_slots - 1, each a row of the device's cache, and the queue before them.

    Of each tenant one request at a time reads its prompts, and tenants take turns by chunks. The
    request whose turn it is may need more slots than are free: then no other begins before it.
    """

    def __init__(self, limits: EngineLimits, policy: SchedulingPolicy | None = None) -> None:
        self._limits = limits
        self._policy = policy or SchedulingPolicy()
        self._slots = Slots(limits.num_slots)
        self._queue = FairQueue()
        self._prefilling: dict[str, PromptWork] = {}  # by tenant
        self._decoding: dict[ScheduledRequest, None] = {}
        self._leaving: list[ScheduledRequest] = []  # cancelled while the device may work on them
        self._decodes_next = False
        self._unreported: PrefillChunk | CopyPrefix | None = None
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> SchedulerCounts:
        """A reading; requests that run are in it with what they have so far."""
        counts = Counter(self._counts)
        for scheduled in self._running:
            counts.update(_token_counts(scheduled))
        return SchedulerCounts(**counts)

    @property
    def slots_in_use(self) -> int:
        """Those of cancelled requests among them, until the next step is asked for."""
        return self._slots.num_slots - self._slots.num_free

    @property
    def queued_requests(self) -> int:
        """Requests that have no slot yet."""
        return self._queue.num_requests

    @property
    def queued_tokens(self) -> int:
        """Tokens of their prompts."""
        return self._queue.num_tokens

    @property
    def unfinished(self) -> tuple[ScheduledRequest, ...]:
        """All requests that have not ended, those that run first."""
        return (*self._running, *self._queue)

    @property
    def _running(self) -> tuple[ScheduledRequest, ...]:
        return (*self._decoding, *(work.scheduled for work in self._prefilling.values()))

    def submit(self, request: EngineRequest, *, deadline: float | None = None) -> ScheduledRequest:
        """Queue a request; after `deadline`, a time of the clock `expire` is given, it need not
        begin any more.

        Raises UsageError for one that can never run and QueueFullError for one too many; ids are
        the caller's to check.
        """
        scheduled = ScheduledRequest(request=request, deadline=deadline)
        require_fit(request, self._limits)
        with self._counting_rejected():
            require_place(scheduled, self._limits, self._queue)
        self._queue.append(scheduled)
        return scheduled

    def require_place(self, num_ahead: int = 0) -> None:
        """Raise QueueFullError if `submit` would after so many more, whatever it was given."""
        with self._counting_rejected():
            require_any_place(self._limits, self._queue, num_ahead)

    def cancel(self, scheduled: ScheduledRequest) -> None:
        """End it wherever it is; nothing more runs for it, and its slots are free at the next
        `next_step`. Without effect on one that has ended."""
        if self._end(scheduled, "cancelled"):
            self._leaving.append(scheduled)

    def expire(self, now: float) -> list[ScheduledRequest]:
        """End the queued requests whose deadline has passed, and give them back."""
        late = [
            scheduled
            for scheduled in self._queue
            if scheduled.deadline is not None and scheduled.deadline < now
        ]
        for scheduled in late:
            self._end(scheduled, "expired")
        return late

    def next_step(self) -> Step:
        """What the device does now."""
        assert self._unreported is None or self._unreported.request.phase == "ended"
        self._unreported = None
        for scheduled in self._leaving:
            self._slots.release(scheduled.slots)
        self._leaving.clear()
        tenant = self._next_tenant()
        if tenant is not None and not (self._decodes_next and self._decoding):
            return self._prefill(tenant)
        self._decodes_next = False
        if not self._decoding:
            return Idle()
        return Decode(requests=tuple(self._decoding), max_steps=self._max_steps(tenant))

    def prefilled(self, step: PrefillChunk | CopyPrefix) -> None:
        """The step is done. Without effect if its request was cancelled meanwhile."""
        scheduled = step.request
        if scheduled.phase == "ended":
            return
        assert step is self._unreported
        self._unreported = None
        work = self._prefilling[scheduled.request.tenant]
        work.done(step)
        if work.is_done:
            del self._prefilling[scheduled.request.tenant]
            self._queue.dismiss(scheduled.request.tenant)
            self._decoding[scheduled] = None
            scheduled.phase = "decode"

    def advanced(self, scheduled: ScheduledRequest, num_tokens: int) -> None:
        """So many more ids were chosen. Without effect on a request that has ended."""
        if scheduled.phase == "ended":
            return
        assert scheduled.phase == "decode"
        assert 0 <= num_tokens <= scheduled.remaining
        scheduled.num_new += num_tokens

    def finish(self, scheduled: ScheduledRequest) -> None:
        """It has all it asked for: its slots are free. Without effect on one that has ended."""
        if self._end(scheduled, "finished"):
            self._slots.release(scheduled.slots)

    def fail(self, scheduled: ScheduledRequest) -> None:
        """It ends wherever it is, and nothing that its slots hold is used again. Without effect
        on one that has ended."""
        if self._end(scheduled, "failed"):
            self._slots.forget(scheduled.slots)
            self._slots.release(scheduled.slots)

    def forget_prefixes(self) -> None:
        """Nothing in the cache is used again: it was lost. Not while requests run."""
        assert not self._running
        self._slots.forget(range(self._slots.num_slots))

    def successor(self) -> "Scheduler":
        """An empty one that counts on: what runs has failed, what is queued may be submitted to it.

        For after a fault, when nothing is known of where this one stands; it is not used again.
        """
        found = Scheduler(self._limits, self._policy)
        found._counts = Counter({name: getattr(self.counts, name) for name in _COUNTS})
        found._counts["failed"] += len(self._running)
        for scheduled in self.unfinished:
            scheduled.phase = "ended"
        return found

    @contextmanager
    def _counting_rejected(self) -> Iterator[None]:
        try:
            yield
        except QueueFullError:
            self._counts["rejected"] += 1
            raise

    def _end(self, scheduled: ScheduledRequest, outcome: str) -> bool:
        """Take it out of where it is; whether it has not ended before."""
        tenant = scheduled.request.tenant
        if scheduled.phase == "ended":
            return False
        if scheduled.phase == "queued":
            self._queue.remove(scheduled)
        elif scheduled.phase == "prefill":
            del self._prefilling[tenant]
        else:
            del self._decoding[scheduled]
        if tenant not in self._prefilling:
            self._queue.dismiss(tenant)
        scheduled.phase = "ended"
        self._counts.update(_token_counts(scheduled))
        self._counts[outcome] += 1
        return True

    def _next_tenant(self) -> str | None:
        """Whose prompts are read next."""
        may_begin = True
        for tenant in self._queue.tenants:
            if tenant in self._prefilling:
                return tenant
            head = self._queue.head(tenant)
            assert head is not None, "a tenant with nothing to do is not in the rotation"
            # Free slots are kept for the first that needs more of them than there are.
            may_begin = may_begin and len(head.request.prompts) <= self._slots.num_free
            if may_begin:
                return tenant
        return None

    def _prefill(self, tenant: str) -> PrefillChunk | CopyPrefix:
        if tenant not in self._prefilling:
            scheduled = self._queue.head(tenant)
            assert scheduled is not None
            self._queue.remove(scheduled)
            self._prefilling[tenant] = PromptWork(scheduled, self._slots)
            scheduled.phase = "prefill"
        step = self._unreported = self._prefilling[tenant].next_step()
        if isinstance(step, PrefillChunk):  # a copy is cheap, and the chunk follows it at once
            self._queue.rotate(tenant)
            self._decodes_next = True
        return step

    def _max_steps(self, tenant: str | None) -> int:
        """Of a call while the prompts of `tenant` wait for their turn."""
        remaining = [scheduled.remaining for scheduled in self._decoding]
        assert min(remaining) > 0, "a request with all its ids was to be finished"
        if tenant is not None:
            return min(self._policy.steps_per_chunk, max(remaining))
        if self._queue.num_requests:  # it waits for a slot, which the first end may free
            return min(self._policy.steps_when_waiting, min(remaining))
        return min(self._policy.most_steps, max(remaining))


def _token_counts(scheduled: ScheduledRequest) -> dict[str, int]:
    return {
        "prompt_tokens": scheduled.num_done,
        "cached_prompt_tokens": scheduled.num_cached,
        "new_tokens": scheduled.num_new,
    }
