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
from bluejay.generation.runner import Prefix, RowGroup, Runner
from bluejay.generation.sampling import Choice, Sampler
from bluejay.generation.sampling_params import SamplingParams

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
    """A sample as it grows. The consumer may end it with `stop` between two choices."""

    request_index: int
    sample_index: int
    choices: list[Choice] = field(default_factory=list)
    finish_reason: FinishReason | None = None

    @property
    def ids(self) -> list[int]:
        return [choice.id for choice in self.choices]

    def stop(self) -> None:
        self.finish_reason = "stop"


def generate(
    runner: Runner, requests: Sequence[GenerationRequest], *, allowed: NDArray[np.bool_]
) -> Iterator[Sample]:
    """Yield a sample each time it has a new choice, and once more when it has finished.

    `allowed` [V] marks the ids that may be chosen. Raises UsageError for a prompt that is empty
    or does not fit with its new tokens into the context.
    """
    rows = [
        _Row(runner, request, allowed, Sample(request_index=index, sample_index=number))
        for index, request in enumerate(requests)
        for number in range(request.num_samples)
    ]
    for row in rows:  # refuse before the first token is made
        row.check()
    if runner.rows_per_call == 1:
        yield from _one_by_one(runner, rows)
        return
    for begin in range(0, len(rows), runner.rows_per_call):
        yield from _together(runner, rows[begin : begin + runner.rows_per_call])


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
        self.sampler.observe_prompt(self.request.prompt_ids)
        return self.runner.start(self.request.prompt_ids, reserve=self.request.max_tokens)

    def choose(self, logits: jax.Array) -> int | None:
        """The next id, or None if the sample has finished."""
        sample, request = self.sample, self.request
        if sample.finish_reason is None and len(sample.choices) == request.max_tokens:
            sample.finish_reason = "length"
        if sample.finish_reason is not None:
            return None
        choice = self.sampler.choose(logits)
        if choice.id in request.stop_ids:
            sample.finish_reason = "stop"
            return None
        sample.choices.append(choice)
        return choice.id


def _one_by_one(runner: Runner, rows: Sequence[_Row]) -> Iterator[Sample]:
    """Every row through the single-row programs; samples of one prompt share its prefill."""
    shared: tuple[int, Prefix] | None = None
    for row in rows:
        index = row.sample.request_index
        if shared is None or shared[0] != index:
            shared = (index, row.start())
        else:
            row.sampler.observe_prompt(row.request.prompt_ids)
        last = row.sample.sample_index == row.request.num_samples - 1
        yield from _run_row(runner, row, shared[1], keep=not last)


def _run_row(runner: Runner, row: _Row, prefix: Prefix, *, keep: bool) -> Iterator[Sample]:
    append = runner.branch if keep else runner.step
    token = row.choose(prefix.logits)
    while token is not None:
        yield row.sample
        if row.sample.finish_reason is None and len(row.sample.choices) < row.request.max_tokens:
            prefix = append(prefix, token)
            append = runner.step
        token = row.choose(prefix.logits)
    yield row.sample


def _together(runner: Runner, rows: Sequence[_Row]) -> Iterator[Sample]:
    """A group of rows in lockstep; finished ones stand still until the last is done."""
    reserve = max(row.request.max_tokens for row in rows)
    group = runner.group([row.start() for row in rows], reserve=reserve)
    while True:
        tokens = [row.choose(logits) for row, logits in zip(rows, _rows(group), strict=False)]
        if all(token is None for token in tokens):
            break
        for row, token in zip(rows, tokens, strict=True):
            if token is not None:
                yield row.sample
        blank = runner.rows_per_call - len(rows)
        group = runner.step_group(group, [*tokens, *[None] * blank])
    for row in rows:
        yield row.sample


def _rows(group: RowGroup) -> list[jax.Array]:
    return [group.logits[row] for row in range(group.logits.shape[0])]


def allowed_log_probabilities(
    logits: NDArray[np.float32], allowed: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """log softmax of [T, V] logits over the ids that may be chosen; -inf for the others."""
    masked = jnp.where(jnp.asarray(allowed)[None, :], jnp.asarray(logits), -jnp.inf)
    return np.asarray(jax.nn.log_softmax(masked, axis=-1))
