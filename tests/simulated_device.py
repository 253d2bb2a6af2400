"""A device without a device: rows of a cache that remember what wrote each position.

It runs what a scheduler tells it and checks every step against the prompts alone, by what a
chunk-by-chunk run of each would leave in its row.

Axes: S slots  P positions  5 (tenant, adapter, writer, cut, id)
"""

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

import numpy as np
from numpy.typing import NDArray

from bluejay.generation.engine_requests import EngineRequest
from bluejay.generation.prompt_chunks import CHUNK_SIZES, capacity_for, chunks
from bluejay.generation.scheduled_steps import (
    CopyPrefix,
    Decode,
    PrefillChunk,
    ScheduledRequest,
    Step,
)
from bluejay.generation.scheduler import Scheduler

NOTHING, CHUNK, SCORED_CHUNK, DECODED, PADDING = range(5)
Numbers = dict[object, int]


class SimulatedDevice:
    """Rows of marks, and for each request how many ids it will really make.

    `num_new` answers that for a request: at most `max_tokens`, fewer for one that meets a stop id.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        *,
        num_slots: int,
        context_length: int,
        num_new: Callable[[EngineRequest], int] = lambda request: request.max_tokens,
    ) -> None:
        self.scheduler = scheduler
        self.rows = np.zeros((num_slots, capacity_for(context_length), 5), np.int64)
        self._num_new = num_new
        self._ends: dict[ScheduledRequest, int] = {}
        self._expected: dict[tuple[ScheduledRequest, int], NDArray[np.int64]] = {}
        self._tenants: Numbers = {}
        self._adapters: Numbers = {}
        self.num_copies = 0
        self.finished: Counter[ScheduledRequest] = Counter()

    def run(
        self, step: Step, *, steps: int = 1_000, meanwhile: Callable[[], None] = lambda: None
    ) -> None:
        """Carry the step out and report it, with what happens in between.

        Of decode steps at most so many.
        """
        if isinstance(step, PrefillChunk):
            self.compute(step)
            meanwhile()
            self.report_chunk(step)
        elif isinstance(step, CopyPrefix):
            self.copy(step)
            meanwhile()
            self.scheduler.prefilled(step)
        elif isinstance(step, Decode):
            moved = self.decode(step, min(steps, step.max_steps))
            meanwhile()
            self.report_steps(step, moved)

    def compute(self, step: PrefillChunk) -> None:
        """Write a chunk, after a look at what is before it."""
        scheduled = step.request
        number = self._number_of(step.slot, scheduled)
        prompt = scheduled.request.prompts[number]
        assert scheduled.phase == "prefill"
        assert (step.begin, step.size) in chunks(len(prompt))
        assert list(step.ids) == list(prompt[step.begin : step.begin + step.size])
        assert step.is_last == (step.begin + step.size >= len(prompt))
        expected = self.expected(scheduled, number)
        row = self.rows[step.slot]
        assert np.array_equal(row[: step.begin], expected[: step.begin]), "not the prompt's prefix"
        end = step.begin + len(step.ids)
        row[step.begin : end] = expected[step.begin : end]
        row[end : step.begin + step.size] = PADDING

    def report_chunk(self, step: PrefillChunk) -> None:
        """The chunk is done, and with the last of them the first id is chosen."""
        scheduled = step.request
        self.scheduler.prefilled(step)
        if not step.ends_prompts or scheduled.phase == "ended":
            return
        for number in range(len(scheduled.slots)):
            self._check_prompt(scheduled, number)
        self._ends[scheduled] = self._num_new(scheduled.request)
        if self._ends[scheduled]:
            self.scheduler.advanced(scheduled, 1)
        self._finish_if_done(scheduled)

    def copy(self, step: CopyPrefix) -> None:
        """Copy a prefix, whoever has its source; what came of it, the next chunk checks."""
        self._number_of(step.target, step.request)
        assert step.request.phase == "prefill"
        assert step.source != step.target
        self.num_copies += 1
        self.rows[step.target, : step.length] = self.rows[step.source, : step.length]

    def decode(self, step: Decode, steps: int) -> list[int]:
        """So many steps of all rows that have not ended; how far each request has come."""
        assert step.requests
        assert len(set(step.slots)) == len(step.slots), "two requests share a row"
        moves = []
        for scheduled in step.requests:
            assert scheduled.phase == "decode"
            assert scheduled.remaining > 0
            moves.append(min(steps, self._ends[scheduled] - scheduled.num_new))
            for slot, prompt in zip(scheduled.slots, scheduled.request.prompts, strict=True):
                begin = len(prompt) + scheduled.num_new - 1
                self.rows[slot, begin : begin + moves[-1]] = DECODED
        return moves

    def report_steps(self, step: Decode, moves: Sequence[int]) -> None:
        """So many ids more for each request; those with all their ids have ended."""
        for scheduled, num_new in zip(step.requests, moves, strict=True):
            self.scheduler.advanced(scheduled, num_new)
        for scheduled in step.requests:
            self._finish_if_done(scheduled)

    def expected(self, scheduled: ScheduledRequest, number: int) -> NDArray[np.int64]:
        """Marks [P, 5] that a run of prompt `number` alone leaves."""
        if (scheduled, number) not in self._expected:
            request = scheduled.request
            prompt = request.prompts[number]
            marks = np.empty((len(prompt), 5), np.int64)
            marks[:, 0] = self._tenants.setdefault(request.tenant, len(self._tenants))
            marks[:, 1] = self._adapters.setdefault(request.adapter, len(self._adapters))
            marks[:, 2] = SCORED_CHUNK if request.scores_prompt else CHUNK
            for begin, size in chunks(len(prompt)):
                marks[begin : begin + size, 3] = begin * (CHUNK_SIZES[0] + 1) + size
            marks[:, 4] = prompt
            self._expected[scheduled, number] = marks
        return self._expected[scheduled, number]

    def _finish_if_done(self, scheduled: ScheduledRequest) -> None:
        if scheduled.num_new == self._ends[scheduled]:
            for number in range(len(scheduled.slots)):
                self._check_prompt(scheduled, number)
            self.scheduler.finish(scheduled)
            self.finished[scheduled] += 1
            for number in range(len(scheduled.slots)):
                del self._expected[scheduled, number]

    def _check_prompt(self, scheduled: ScheduledRequest, number: int) -> None:
        expected = self.expected(scheduled, number)
        row = self.rows[scheduled.slots[number]]
        assert np.array_equal(row[: len(expected)], expected), "the row holds another prompt"

    def _number_of(self, slot: int, scheduled: ScheduledRequest) -> int:
        """Which of its prompts has the slot, that no other request has."""
        others = [other for other in self.scheduler.unfinished if other is not scheduled]
        assert all(slot not in other.slots for other in others), "a row has two owners"
        return scheduled.slots.index(slot)


def random_prompt(random: Random, earlier: Sequence[Sequence[int]], *, longest: int) -> list[int]:
    """Ids: one of the earlier prompts, that with a few more, its beginning, or all of them new."""
    length = random.choice([5, 40, 150, 300, random.randint(1, longest)])
    if not earlier or random.random() < 0.3:
        return random.choices(range(50_000), k=length)
    ids = list(random.choice(earlier))
    how = random.choice(["again", "more", "beginning"])
    if how == "more":
        ids += random.choices(range(50_000), k=random.choice([1, 16, 200]))
    return ids[: length if how == "beginning" else longest]
