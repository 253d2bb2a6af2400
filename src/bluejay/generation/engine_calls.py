"""Calls of the device for what a scheduler says: chunks in, steps of many rows out.

Axes: R rows of a call  V vocabulary
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from bluejay.core.errors import BluejayError
from bluejay.core.failpoints import failpoint
from bluejay.generation.engine_pace import CallPace
from bluejay.generation.engine_requests import Failed, Finished
from bluejay.generation.engine_samples import DAMAGED, Outcome, Sample, token_score
from bluejay.generation.engine_speculation import LoneSample, known_times
from bluejay.generation.sampling_params import SamplingParams
from bluejay.generation.scheduled_steps import PrefillChunk
from bluejay.generation.slot_device import CallForm, SlotDevice
from bluejay.generation.slot_rows import BLANK_SLOT, HostChoices, SlotRow, fixed_numbers
from bluejay.generation.speculation_length import PassTimes
from bluejay.generation.step_mail import Hear

Found = TypeVar("Found")
_PLAIN: Final = fixed_numbers(SamplingParams())


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Samples that step in one call: of one adapter, and all or none with combined logits."""

    samples: tuple[Sample, ...]
    adapter: str | None
    is_combined: bool
    most_steps: int


def batches_of(samples: Sequence[Sample], *, most_steps: int, most_rows: int) -> list[Batch]:
    """The calls of a turn, in which everybody goes on by the same number of steps, nearly.

    More than `most_rows` samples go in several calls of nearly the same size.
    """
    groups: dict[tuple[str | None, bool], list[Sample]] = {}
    for sample in samples:
        key = (sample.request.adapter, sample.is_combined)
        groups.setdefault(key, []).append(sample)
    if any(sample.is_combined or sample.request.constraint for sample in samples):
        most_steps = 1
    return [
        Batch(
            samples=tuple(part),
            adapter=adapter,
            is_combined=is_combined,
            most_steps=most_steps,
        )
        for (adapter, is_combined), group in groups.items()
        for part in ([group] if is_combined else _parts(group, most_rows))
    ]


def _parts(samples: Sequence[Sample], most: int) -> list[Sequence[Sample]]:
    count = -(-len(samples) // most)
    size = -(-len(samples) // count)
    return [samples[begin : begin + size] for begin in range(0, len(samples), size)]


class DeviceCalls:
    """Runs chunks and batches; everything that a sample's own functions raise ends that sample
    alone, everything else is raised.

    `hear` is told what batches bring, step by step where the device tells of steps, and whether
    the call has no more.
    """

    def __init__(
        self,
        device: SlotDevice,
        *,
        allowed: NDArray[np.bool_],
        hear: Callable[[Sequence[Outcome], bool], None],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._device, self._allowed, self._clock = device, allowed, clock
        self._hear = hear
        self._pace = CallPace()
        self._ended: float | None = None
        self._alone: tuple[Sample, LoneSample] | None = None
        self._most_alone = 1
        self._times: dict[str | None, PassTimes] = {}

    def interrupt(self) -> None:
        """Something else happens now than one batch after the other."""
        self._ended = None

    def rest(self) -> None:
        """Nobody is there: nothing is kept of whoever was alone last."""
        self.interrupt()
        self._alone = None

    def prefill(self, step: PrefillChunk, sample: Sample) -> None:
        """Run a chunk, and keep what it gives for the sample."""
        self.interrupt()
        failpoint("engine-prefill")
        if sample.request.scores_prompt:
            logits, found = self._device.score(step)
            sample.take_prompt_scores(found)
        else:
            logits = self._device.prefill(step)
        if step.is_last:
            sample.logits[step.slot] = logits

    def begin(self, sample: Sample) -> Outcome:
        """The prompts are in the cache: their scores, and the first choice."""
        scores = tuple(sample.prompt_scores) if sample.request.scores_prompt else None
        if scores and any(np.isnan(score.logprob or 0.0) for score in scores):
            return Outcome(sample=sample, ending=Failed(message=DAMAGED, is_transient=False))
        if not sample.request.max_tokens:
            ending = Finished(reason="length")
            return Outcome(sample=sample, prompt_scores=scores, ending=ending)
        if sample.form.is_full:
            slot, prompt = sample.scheduled.slots[0], sample.request.prompts[0]
            self._device.fill(slot, prompt, sample.request.sampling.logit_bias)
        logits = [sample.logits[slot] for slot in sample.scheduled.slots]
        sample.logits.clear()
        if sample.is_combined:
            stacked = np.concatenate([np.asarray(array) for array in logits])
            outcome = self._choose_combined(sample, stacked)
        else:
            outcome = self._choose(sample, logits[0])
        return replace(outcome, prompt_scores=scores)

    def run(self, batch: Batch) -> None:
        """One call for a batch."""
        failpoint("engine-decode")
        [first, *others] = batch.samples
        if batch.is_combined:
            self.interrupt()
            self._hear(self._run_combined(batch), True)
        elif not others and batch.most_steps > 1 and self._may_speculate(first):
            self._lone(first, batch).go_on()
        else:
            self._run_rows(batch)

    def _may_speculate(self, sample: Sample) -> bool:
        is_plain = sample.form == CallForm(is_full=False, has_alternatives=False)
        return self._device.checks_drafts and is_plain

    def _lone(self, sample: Sample, batch: Batch) -> LoneSample:
        """The sample as it was when it was alone last, or as it is now."""
        if self._alone is None or self._alone[0] is not sample:
            lone = LoneSample(
                sample,
                capacity=self._device.capacity,
                take_steps=lambda most, hear: self._steps_alone(sample, most, hear),
                check=lambda drafted, positions: self._check_alone(sample, drafted, positions),
                hear=lambda outcome, is_last: self._hear([outcome], is_last),
                times=self._times.setdefault(batch.adapter, known_times()),
            )
            self._alone = (sample, lone)
        self._most_alone = batch.most_steps
        return self._alone[1]

    def _steps_alone(self, sample: Sample, most: int, hear: Hear) -> None:
        batch = Batch(
            samples=(sample,),
            adapter=sample.request.adapter,
            is_combined=False,
            most_steps=min(most, self._most_alone),
        )
        self._decode([sample], batch, None, hear)

    def _check_alone(self, sample: Sample, drafted: Sequence[int], positions: int) -> HostChoices:
        [row] = sample.rows()
        choices = self._device.check(
            row, drafted, positions=positions, adapter=sample.request.adapter
        )
        self._ended = self._clock()
        return choices

    def _run_rows(self, batch: Batch) -> None:
        running: list[Sample] = []
        masks: list[NDArray[np.bool_] | None] = []
        for sample in batch.samples:
            mask = self._permitted(sample)
            if isinstance(mask, Failed):
                self._hear([Outcome(sample=sample, ending=mask)], True)
            else:
                running.append(sample)
                masks.append(mask)
        if not running:
            return
        left = dict(enumerate(running))

        def hear(choices: HostChoices, is_last: bool) -> None:
            outcomes = [_taken(sample, choices, row) for row, sample in left.items()]
            ended = [row for row, at in zip(left, outcomes, strict=True) if at.ending is not None]
            for row in ended:
                del left[row]
            self._hear(outcomes, is_last)

        self._decode(running, batch, self._joined(masks), hear)

    def _decode(
        self,
        running: Sequence[Sample],
        batch: Batch,
        permitted: NDArray[np.bool_] | None,
        hear: Hear,
    ) -> None:
        form = CallForm(
            is_full=any(sample.form.is_full for sample in running),
            has_alternatives=any(sample.form.has_alternatives for sample in running),
        )
        steps = batch.most_steps
        if not self._device.hears_steps:  # else a long call ends for whoever comes or ends
            steps = self._pace.num_steps(len(running), most=steps)
        begun = self._clock()
        if self._ended is not None:
            self._pace.observe_host(begun - self._ended)
        taken = self._device.decode(
            [row for sample in running for row in sample.rows()],
            form,
            num_steps=steps,
            hear=hear,
            adapter=batch.adapter,
            permitted=permitted,
        )
        self._ended = self._clock()
        self._pace.observe_call(len(running), steps=taken, seconds=self._ended - begun)

    def _run_combined(self, batch: Batch) -> list[Outcome]:
        rows = [row for sample in batch.samples for row in sample.rows()]
        logits = self._device.peek(rows, adapter=batch.adapter)
        outcomes, begin = list[Outcome](), 0
        for sample in batch.samples:
            end = begin + len(sample.request.prompts)
            outcomes.append(self._choose_combined(sample, logits[begin:end]))
            begin = end
        return outcomes

    def _choose_combined(self, sample: Sample, logits: NDArray[np.float32]) -> Outcome:
        if np.isnan(logits).any():
            return Outcome(sample=sample, ending=Failed(message=DAMAGED, is_transient=False))
        combined = _guarded(lambda: sample.combined(logits))
        if isinstance(combined, Failed):
            return Outcome(sample=sample, ending=combined)
        outcome = self._choose(sample, combined)
        if len(logits) > 1 or outcome.choices is None:
            return outcome
        own = self._own_choice(sample, logits, int(outcome.choices.ids[0, outcome.row]))
        ending = outcome.ending
        if isinstance(ending, Finished) and ending.end is not None:
            ending = replace(ending, end=token_score(own, 0, 0, sample.request.num_alternatives))
        return replace(outcome, choices=own, row=0, ending=ending)

    def _own_choice(self, sample: Sample, logits: NDArray[np.float32], token: int) -> HostChoices:
        """An id as the model itself scores it by its logits [1, V], whatever it was chosen from."""
        only = np.zeros_like(self._allowed)
        only[token] = True
        # Of no slot: the tables of none take note of it.
        row = SlotRow(slot=BLANK_SLOT, fixed=_PLAIN)
        form = sample.form._replace(is_full=True)
        return self._device.choose_first(logits, row, form, permitted=only[None])

    def _choose(self, sample: Sample, logits: Array | NDArray[np.float32]) -> Outcome:
        """The next id from logits [1, V]."""
        mask = self._permitted(sample)
        if isinstance(mask, Failed):
            return Outcome(sample=sample, ending=mask)
        choices = self._device.choose_first(
            logits, sample.choosing_row(), sample.form, permitted=self._joined([mask])
        )
        return _taken(sample, choices, 0)

    def _permitted(self, sample: Sample) -> NDArray[np.bool_] | Failed | None:
        return _guarded(lambda: sample.permitted(self._allowed))

    def _joined(self, masks: Sequence[NDArray[np.bool_] | None]) -> NDArray[np.bool_] | None:
        """[R, V], where some row has a mask."""
        if all(mask is None for mask in masks):
            return None
        everything = np.ones_like(self._allowed)
        return np.stack([everything if mask is None else mask for mask in masks])


def _taken(sample: Sample, choices: HostChoices, row: int) -> Outcome:
    found = _guarded(lambda: sample.take(choices, row))
    return Outcome(sample=sample, ending=found) if isinstance(found, Failed) else found


def _guarded(run: Callable[[], Found]) -> Found | Failed:
    """What a request's own function gives, or why its sample ends."""
    try:
        return run()
    except BluejayError as error:
        return Failed(message=str(error), is_transient=False)
    except Exception as error:  # whatever they are: nobody else is to feel it
        kind = type(error).__name__
        message = f"A function of the request's own failed ({kind}): look at what was sent with it."
        return Failed(message=message, is_transient=False)
