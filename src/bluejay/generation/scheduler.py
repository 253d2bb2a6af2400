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

from dataclasses import dataclass

from bluejay.generation.engine_requests import EngineLimits, EngineRequest
from bluejay.generation.scheduled_steps import CopyPrefix, PrefillChunk, ScheduledRequest, Step


@dataclass(frozen=True, kw_only=True)
class SchedulingPolicy:
    """How long the device may work before it asks again, in decode steps.

    `steps_per_chunk` are taken between two chunks of prompts while rows decode: more of them
    favours texts that are being written over those that wait for their first word.
    `steps_when_waiting` at most while a request waits for a slot, `most_steps` when nobody waits.
    """

    steps_per_chunk: int = 1
    steps_when_waiting: int = 4
    most_steps: int = 16


@dataclass(frozen=True, kw_only=True)
class SchedulerCounts:
    """Since the start, as EngineStatus has them; `expired` ones are not among the failed."""

    prompt_tokens: int = 0
    cached_prompt_tokens: int = 0
    new_tokens: int = 0
    finished: int = 0
    cancelled: int = 0
    failed: int = 0
    expired: int = 0
    rejected: int = 0


class Scheduler:
    """Slots 0 … num_slots - 1, each a row of the device's cache, and the queue before them."""

    def __init__(self, limits: EngineLimits, policy: SchedulingPolicy | None = None) -> None:
        raise NotImplementedError

    @property
    def counts(self) -> SchedulerCounts:
        raise NotImplementedError

    @property
    def slots_in_use(self) -> int:
        raise NotImplementedError

    @property
    def queued_requests(self) -> int:
        raise NotImplementedError

    @property
    def queued_tokens(self) -> int:
        raise NotImplementedError

    @property
    def unfinished(self) -> tuple[ScheduledRequest, ...]:
        """All requests that have not ended, those that run first."""
        raise NotImplementedError

    def submit(self, request: EngineRequest, *, deadline: float | None = None) -> ScheduledRequest:
        """Queue a request; after `deadline`, a time of the clock `expire` is given, it need not
        begin any more.

        Raises UsageError for one that can never run and QueueFullError for one too many; ids are
        the caller's to check.
        """
        raise NotImplementedError

    def cancel(self, scheduled: ScheduledRequest) -> None:
        """End it wherever it is; nothing more runs for it, and its slots are free at the next
        `next_step`. Without effect on one that has ended."""
        raise NotImplementedError

    def expire(self, now: float) -> list[ScheduledRequest]:
        """End the queued requests whose deadline has passed, and give them back."""
        raise NotImplementedError

    def next_step(self) -> Step:
        """What the device does now."""
        raise NotImplementedError

    def prefilled(self, step: PrefillChunk | CopyPrefix) -> None:
        """The step is done. Also to be told when its request was cancelled meanwhile."""
        raise NotImplementedError

    def advanced(self, scheduled: ScheduledRequest, num_tokens: int) -> None:
        """So many more ids were chosen. Without effect on a request that has ended."""
        raise NotImplementedError

    def finish(self, scheduled: ScheduledRequest) -> None:
        """It has all it asked for: its slots are free. Without effect on one that has ended."""
        raise NotImplementedError

    def fail(self, scheduled: ScheduledRequest) -> None:
        """As `finish`; nothing in its slots is used again."""
        raise NotImplementedError

    def forget_prefixes(self) -> None:
        """Nothing in the cache is used again: it was lost. Not while requests run."""
        raise NotImplementedError
