"""Generate: prompts in, samples out, one chosen id at a time.

Prompts of any lengths run together in groups of the runner's static number of rows; a sample's
ids depend on its prompt, its sampling parameters and its number alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from bluejay.core.errors import UsageError
from bluejay.generation.decode_loop import DecodeLoop
from bluejay.generation.runner import Prefix, Runner
from bluejay.generation.sampling import Choice, Sampler
from bluejay.generation.sampling_params import SamplingParams
from bluejay.generation.speculation import (
    AUTOMATIC,
    Drafter,
    LookupDrafter,
    PacedLoop,
    Speculation,
    SpeculativeLoop,
)
from bluejay.generation.speculation_length import PassTimes
from bluejay.generation.speculation_model import ModelDrafter

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True)
class GenerationRequest:
    """One prompt and what is asked of it.

    `num_alternatives` is how many of the likeliest ids come with every choice. A stop id ends a
    sample and is not part of it.
    """

    prompt_ids: Sequence[int]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    stop_ids: frozenset[int] = frozenset()
    num_samples: int = 1
    num_alternatives: int = 0

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UsageError(f"max_tokens must be at least 1, not {self.max_tokens}.")
        if not 1 <= self.num_samples <= 128:
            raise UsageError(f"n must lie between 1 and 128, not {self.num_samples}.")


@dataclass(kw_only=True)
class Sample:
    """A sample as it grows. The consumer may end it with `stop` between two choices.

    Of `num_drafted` ids that were checked, `num_accepted` were chosen.
    """

    request_index: int
    sample_index: int
    choices: list[Choice] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    num_drafted: int = 0
    num_accepted: int = 0

    @property
    def ids(self) -> list[int]:
        return [choice.id for choice in self.choices]

    def stop(self) -> None:
        self.finish_reason = "stop"


def generate(
    runner: Runner,
    requests: Sequence[GenerationRequest],
    *,
    allowed: NDArray[np.bool_],
    speculation: Speculation = AUTOMATIC,
) -> Iterator[Sample]:
    """Yield a sample each time it has a new choice, and once more when it has finished.

    `allowed` [V] marks the ids that may be chosen. `speculation` changes how soon choices come and
    nothing else. Raises UsageError for a prompt that is empty or does not fit with its new tokens
    into the context, and for speculation that was asked for and cannot be.
    """
    speculation.is_possible(runner)
    rows = [
        _Row(runner, request, allowed, Sample(request_index=index, sample_index=number))
        for index, request in enumerate(requests)
        for number in range(request.num_samples)
    ]
    for row in rows:  # refuse before the first token is made
        row.check()
    shared = _SharedPrefill(runner)
    for begin in range(0, len(rows), runner.rows_per_call):
        yield from _run(runner, rows[begin : begin + runner.rows_per_call], shared, speculation)


class _Row:
    """One sample with its sampler."""

    def __init__(
        self,
        runner: Runner,
        request: GenerationRequest,
        allowed: NDArray[np.bool_],
        sample: Sample,
    ) -> None:
        self.runner, self.request, self.sample = runner, request, sample
        self.sampler = Sampler(
            request.sampling,
            allowed=allowed,
            sample_index=sample.sample_index,
            num_alternatives=request.num_alternatives,
        )

    def check(self) -> None:
        self.runner.require_fit(self.request.prompt_ids, self.request.max_tokens)

    def start(self) -> Prefix:
        return self.runner.start(self.request.prompt_ids, reserve=self.request.max_tokens)

    def take(self, choice: Choice) -> None:
        """Add a choice, and end where it is a stop id or the last that was asked for."""
        sample = self.sample
        if choice.id in self.request.stop_ids:
            sample.finish_reason = "stop"
            return
        sample.choices.append(choice)

    def end_at_length(self) -> None:
        if len(self.sample.choices) == self.request.max_tokens:
            self.sample.finish_reason = self.sample.finish_reason or "length"


class _SharedPrefill:
    """The prompt that was run last: samples of one prompt need it once."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._index: int | None = None
        self._prefix: Prefix | None = None

    def of(self, row: _Row, *, is_alone: bool) -> Prefix:
        """The row's prefix. A row that is alone consumes it: a copy while others need it."""
        index = row.sample.request_index
        if self._prefix is None or self._index != index:
            self._index, self._prefix = index, row.start()
        is_last = row.sample.sample_index == row.request.num_samples - 1
        return self._prefix if is_last or not is_alone else self._runner.copy(self._prefix)


def _run(
    runner: Runner, rows: Sequence[_Row], shared: _SharedPrefill, speculation: Speculation
) -> Iterator[Sample]:
    """Rows in lockstep; finished ones stand still until the last is done."""
    for row in rows:
        row.sampler.observe_prompt(row.request.prompt_ids)
    loop = DecodeLoop(
        runner,
        [shared.of(row, is_alone=len(rows) == 1) for row in rows],
        [row.sampler for row in rows],
        stop_ids=[row.request.stop_ids for row in rows],
        max_tokens=[row.request.max_tokens for row in rows],
    )
    paced = _paced(loop, runner, rows, speculation)
    while any(row.sample.finish_reason is None for row in rows):
        found = paced.advance()
        rows[0].sample.num_drafted = paced.num_drafted
        rows[0].sample.num_accepted = paced.num_accepted
        for index, (row, choices) in enumerate(zip(rows, found, strict=True)):
            for choice in choices:
                if row.sample.finish_reason is not None:
                    break
                row.take(choice)
                if row.sample.finish_reason is None:
                    yield row.sample
                row.end_at_length()
            if row.sample.finish_reason is not None:
                paced.end(index)
    for row in rows:
        yield row.sample


def _paced(
    loop: DecodeLoop, runner: Runner, rows: Sequence[_Row], speculation: Speculation
) -> PacedLoop | SpeculativeLoop:
    """The loop with somebody who says how much each call does. Only single rows speculate: rows
    that run together share the reading of the weights already."""
    if not speculation.is_possible(runner) or len(rows) > 1:
        return PacedLoop(loop)
    prompt, draft = rows[0].request.prompt_ids, speculation.draft
    if draft is None:
        drafter: Drafter = LookupDrafter(prompt)
    else:
        drafter = ModelDrafter(draft, prompt, loop)
    known = (draft or runner).pass_times
    times = known.setdefault((loop.form, loop.capacity), PassTimes(draft_cost=drafter.cost))
    return SpeculativeLoop(loop, drafter, times=times, counts_loading=not speculation.is_asked_for)


def allowed_log_probabilities(
    logits: NDArray[np.float32], allowed: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """log softmax of [T, V] logits over the ids that may be chosen; -inf for the others."""
    masked = jnp.where(jnp.asarray(allowed)[None, :], jnp.asarray(logits), -jnp.inf)
    return np.asarray(jax.nn.log_softmax(masked, axis=-1))
