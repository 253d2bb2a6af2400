"""The engine: requests of many clients through one model, in slots, on a thread of its own.

The thread asks the scheduler for a step, runs it on the device without holding the lock, and tells
the listeners what came of it. A step is a chunk of a prompt or a call of some decode steps, which
ends early for whatever arrives meanwhile (docs/decisions/0019).
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Final

import numpy as np
from numpy.typing import NDArray

from bluejay.core.errors import UsageError
from bluejay.core.failpoints import failpoint
from bluejay.generation.compile_count import num_compiled_here
from bluejay.generation.engine_calls import Batch, DeviceCalls, batches_of
from bluejay.generation.engine_news import News, time_apart
from bluejay.generation.engine_requests import (
    EngineLimits,
    EngineRequest,
    EngineStatus,
    EngineStoppedError,
    Failed,
    Finished,
    Listener,
)
from bluejay.generation.engine_samples import Outcome, Sample
from bluejay.generation.pulse import Pulse
from bluejay.generation.runner import Runner, require_ids
from bluejay.generation.scheduled_steps import (
    CopyPrefix,
    Decode,
    Idle,
    PrefillChunk,
    ScheduledRequest,
    Step,
)
from bluejay.generation.scheduler import Scheduler, SchedulingPolicy
from bluejay.generation.slot_device import SlotDevice, require_context
from bluejay.generation.slot_programs import MOST_ALTERNATIVES
from bluejay.generation.slot_warm_up import OnProgram, warm_up
from bluejay.model.params import DecoderParams

# Calls that fail one after the other, without one that succeeds between them, are a fault of the
# engine, which begins again; so often, without a request that finishes between, and it gives up.
MOST_FAILURES: Final = 8
MOST_RESTARTS: Final = 3
_LOGGER = logging.getLogger(__name__)


class _StoppedEarlyError(Exception):
    """The engine is to end before it was ready."""


class SlotEngine:
    """Runs requests in `limits.num_slots` slots of one cache. Implements `engine_requests.Engine`.

    `allowed` [V] tells which ids may be chosen at all, `adapters` are fine-tuned parameters by
    name. Requests may be submitted as soon as it is made, and run when `start` has warmed it up.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        allowed: NDArray[np.bool_],
        limits: EngineLimits,
        adapters: Mapping[str, DecoderParams] | None = None,
        policy: SchedulingPolicy | None = None,
    ) -> None:
        require_context(limits.context_length, runner)
        self._limits = limits
        self.pulse = Pulse()  # of the steps; nothing of the warm-up
        self._device = SlotDevice(
            runner,
            allowed=allowed,
            num_slots=limits.num_slots,
            context_length=limits.context_length,
            adapters=adapters,
        )
        self._news = News(self._cancel)
        self._apart = 0.0
        self._readers: Sequence[Sample] = ()
        self._device.meanwhile = lambda: self._news.tell(apart=self._apart)
        self._device.pause = lambda: self._news.pause(self._readers, apart=self._apart)
        self._calls = DeviceCalls(self._device, allowed=allowed, hear=self._hear)
        if policy is None:
            policy = SchedulingPolicy()
            if self._device.hears_steps:  # whose calls end with the first row that ends
                policy = replace(policy, steps_when_waiting=policy.most_steps)
        self._scheduler = Scheduler(limits, policy)
        self._samples: dict[ScheduledRequest, Sample] = {}
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._live, name="bluejay-engine", daemon=True)
        self._on_program: OnProgram | None = None
        self._is_ready = self._is_draining = self._is_stopping = self._is_failed = False
        self._failures = 0
        self._restarts = self._restarts_in_a_row = self._finished_before = 0
        self._recompiles = 0

    @property
    def limits(self) -> EngineLimits:
        return self._limits

    def start(self, on_program: OnProgram | None = None) -> "SlotEngine":
        """Begin on the engine's thread: first every program once, of which `on_program` hears."""
        self._on_program = on_program
        self._thread.start()
        return self

    def submit(self, request: EngineRequest, listener: Listener) -> Callable[[], None]:
        """As `engine_requests.Engine`: a listener that is being called when its request is
        cancelled is called no more than that."""
        self._require_possible(request)
        with self._changed:
            if self._is_draining or self._is_stopping or self._is_failed:
                raise EngineStoppedError("The server is shutting down: send the request again.")
            scheduled = self._scheduler.submit(request)
            sample = self._samples[scheduled] = Sample(scheduled, listener)
            self._device.halt(True)  # it is not to wait for the end of a long call
            self._changed.notify_all()
        return lambda: self._cancel(sample)

    def require_place(self, num_ahead: int = 0) -> None:
        """As `engine_requests.Engine`."""
        with self._changed:
            self._scheduler.require_place(num_ahead)

    def status(self) -> EngineStatus:
        with self._changed:
            counts = self._scheduler.counts
            is_open = not (self._is_draining or self._is_stopping or self._is_failed)
            return EngineStatus(
                is_ready=self._is_ready and is_open,
                is_failed=self._is_failed,
                slots_in_use=self._scheduler.slots_in_use,
                queued_requests=self._scheduler.queued_requests,
                queued_tokens=self._scheduler.queued_tokens,
                prompt_tokens=counts.prompt_tokens,
                cached_prompt_tokens=counts.cached_prompt_tokens,
                new_tokens=counts.new_tokens,
                finished=counts.finished,
                cancelled=counts.cancelled,
                failed=counts.failed + counts.expired,
                rejected=counts.rejected,
                recompiles=self._recompiles,
                restarts=self._restarts,
            )

    def drain(self, timeout: float | None = None) -> bool:
        """Take no more requests and wait for those that run or wait; whether all have ended and
        heard of it."""
        with self._changed:
            self._is_draining = True
            return self._changed.wait_for(lambda: not (self._samples or self._news), timeout)

    def stop(self, timeout: float | None = None) -> bool:
        """End: whatever still runs or waits fails. Whether the thread has ended in time."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        if self._thread.ident is None:
            self._fail_all("The server is shutting down: send the request again.")
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _require_possible(self, request: EngineRequest) -> None:
        if request.adapter is not None and request.adapter not in self._device.adapters:
            names = ", ".join(sorted(self._device.adapters)) or "none"
            raise UsageError(
                f"There is no adapter {request.adapter!r}: those that were loaded are {names}."
            )
        if not 0 <= request.num_alternatives <= MOST_ALTERNATIVES:
            raise UsageError(
                f"{request.num_alternatives} alternatives were asked for, but it must be 0 to"
                f" {MOST_ALTERNATIVES}."
            )
        for ids in (*request.prompts, request.sampling.logit_bias):
            require_ids(ids, self._device.config)

    def _cancel(self, sample: Sample) -> None:
        sample.is_cancelled = True
        with self._changed:
            self._scheduler.cancel(sample.scheduled)
            self._forget(sample.scheduled)
            self._device.halt(True)

    def _forget(self, scheduled: ScheduledRequest) -> None:
        """A request has ended."""
        self._samples.pop(scheduled, None)
        self._changed.notify_all()

    # What follows runs on the engine's thread.

    def _live(self) -> None:
        try:
            with suppress(_StoppedEarlyError):
                warm_up(self._device, self._report)
                known = num_compiled_here()
                self._is_ready = True
                while not self._has_ended(known):
                    pass
        except BaseException:
            _LOGGER.exception("The engine has failed.")
            self._is_failed = True
            self._fail_all("The engine has failed: send it again when the server is back.")
        else:
            self._fail_all("The server is shutting down: send the request again.")

    def _has_ended(self, num_compiled: int) -> bool:
        """Run until the end, or until a fault after which to begin again."""
        try:
            while self._take_step():
                self._recompiles = num_compiled_here() - num_compiled
        except Exception as error:
            self._begin_again(error)
            return False
        return True

    def _begin_again(self, error: Exception) -> None:
        """Requests that run fail, those in the queue wait on. Raises `error` at the last try."""
        finished = self._scheduler.counts.finished
        has_worked, self._finished_before = finished > self._finished_before, finished
        self._restarts_in_a_row = 1 if has_worked else self._restarts_in_a_row + 1
        if self._restarts_in_a_row > MOST_RESTARTS:
            raise error
        _LOGGER.error("The engine has failed and begins again.", exc_info=error)
        self._calls.interrupt()
        self._device.recover()
        ending = Failed(
            message="The engine failed and has begun again: send the request again.",
            is_transient=True,
        )
        with self._changed:
            failed: list[Sample] = []
            queued: list[Sample] = []
            for sample in self._samples.values():
                (queued if sample.scheduled.phase == "queued" else failed).append(sample)
            self._restarts += 1
            self._scheduler = self._scheduler.successor()
            self._samples.clear()
            for sample in queued:
                sample.scheduled = self._scheduler.submit(sample.request)
                self._samples[sample.scheduled] = sample
            self._changed.notify_all()
        for sample in failed:
            self._news.add(sample, ending)
        self._news.tell()

    def _report(self, done: int, total: int) -> None:
        if self._is_stopping:
            raise _StoppedEarlyError
        if self._on_program is not None:
            self._on_program(done, total)

    def _take_step(self) -> bool:
        """Whether there was one: not at the end. Who waits for it holds nothing of the last one."""
        step = self._next_step()
        if step is None:
            return False
        with self.pulse.piece():
            self._run(step)
        return True

    def _next_step(self) -> Step | None:
        """Waits for something to do; None at the end."""
        while True:
            with self._changed:
                if self._is_stopping:
                    return None
                step = self._scheduler.next_step()
                if not isinstance(step, Idle):
                    return step
                self._calls.rest()
                if not self._news:
                    self._changed.notify_all()  # whoever drains: all is told
                    self._changed.wait()
            self._news.tell()

    def _run(self, step: Step) -> None:
        failpoint("engine-step")
        if isinstance(step, Decode):
            samples = self._readers = self._samples_of(step.requests)
            self._apart = time_apart(sum(not sample.request.is_patient for sample in samples))
            most_rows = self._device.most_rows
            for batch in batches_of(samples, most_steps=step.max_steps, most_rows=most_rows):
                self._try(batch.samples, partial(self._decode, batch))
        elif isinstance(step, CopyPrefix | PrefillChunk):
            samples = self._samples_of([step.request])
            self._apart = 0.0  # a chunk takes as long as many steps
            self._try(samples, partial(self._read, step, samples))

    def _read(self, step: CopyPrefix | PrefillChunk, samples: Sequence[Sample]) -> None:
        """A part of a prompt, unless its request was cancelled."""
        for sample in samples:
            if isinstance(step, CopyPrefix):
                self._device.copy(step.source, step.target, step.length)
            else:
                self._calls.prefill(step, sample)
            with self._changed:
                self._scheduler.prefilled(step)
                progress = sample.scheduled.progress
            self._news.add(sample, progress)
            if isinstance(step, PrefillChunk) and step.ends_prompts and not sample.is_cancelled:
                self._apply([self._calls.begin(sample)])

    def _decode(self, batch: Batch) -> None:
        """A call for those that an earlier call of the turn has not taken with it."""
        with self._changed:
            left = tuple(sample for sample in batch.samples if sample.scheduled in self._samples)
            # Whatever happens from here on, the scheduler does not know of it yet.
            self._device.halt(False)
        if left:
            self._calls.run(replace(batch, samples=left))

    def _hear(self, outcomes: Sequence[Outcome], is_last: bool) -> None:
        """What steps brought: told at once, or while the next call runs if this one is over."""
        self._apply(outcomes)
        if not is_last:
            self._news.tell(apart=self._apart)

    def _samples_of(self, requests: Sequence[ScheduledRequest]) -> list[Sample]:
        """Those that were not cancelled meanwhile."""
        with self._changed:
            return [self._samples[found] for found in requests if found in self._samples]

    def _apply(self, outcomes: Sequence[Outcome]) -> None:
        """Tell scheduler and listeners what a call brought."""
        with self._changed:
            for outcome in outcomes:
                sample = outcome.sample
                self._news.add(sample, outcome)
                self._scheduler.advanced(sample.scheduled, outcome.num_new)
                if outcome.ending is not None:
                    self._end(sample, outcome.ending)
                    self._device.halt(True)  # what is left of its call is without it

    def _end(self, sample: Sample, ending: Finished | Failed) -> None:
        if isinstance(ending, Finished):
            self._scheduler.finish(sample.scheduled)
        else:
            self._scheduler.fail(sample.scheduled)
        self._forget(sample.scheduled)

    def _try(self, samples: Sequence[Sample], run: Callable[[], None]) -> None:
        """Run a call; if it fails, so do its samples, and those whose slots it took with it."""
        try:
            run()
            self._failures = 0
        except Exception as error:
            _LOGGER.exception("A call of the engine failed.")
            self._failures += 1
            self._calls.interrupt()
            lost = self._device.recover()
            message = f"The engine could not go on with it ({type(error).__name__}): send it again."
            with self._changed:
                taken = [
                    sample
                    for sample in self._samples.values()
                    if sample.scheduled.phase != "queued"
                    and (lost.cache or (lost.tables and sample.form.is_full))
                ]
                failed = {*samples, *taken} & {*self._samples.values()}
                ending = Failed(message=message, is_transient=True)
                for sample in failed:
                    self._end(sample, ending)
                    self._news.add(sample, ending)
                if lost.cache:
                    self._scheduler.forget_prefixes()
            self._news.tell()
            if self._failures >= MOST_FAILURES:
                raise

    def _fail_all(self, message: str) -> None:
        ending = Failed(message=message, is_transient=True)
        with self._changed:
            samples = list(self._samples.values())
            for sample in samples:
                self._end(sample, ending)
                self._news.add(sample, ending)
        self._news.tell()
        with self._changed:
            self._changed.notify_all()
