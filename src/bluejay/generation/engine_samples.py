"""What an engine knows of a request that runs, between two calls of the device.

Axes: V vocabulary  R rows of a call
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from bluejay.core.errors import UsageError
from bluejay.generation.engine_requests import (
    EngineEvent,
    Failed,
    Finished,
    Listener,
    NewTokens,
    PromptScores,
    TokenScore,
)
from bluejay.generation.sampling_rows import PENALTIES, active_transforms
from bluejay.generation.scheduled_steps import ScheduledRequest
from bluejay.generation.slot_device import CallForm
from bluejay.generation.slot_rows import HostChoices, SlotRow, fixed_numbers

DAMAGED: Final = (
    "The model's logits are not finite numbers: its weights are damaged or overflow in their data"
    " type, so load it in float32 or fetch it again."
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a call brought a sample: ids, perhaps the prompt's scores, perhaps its end.

    The first `num_new` choices of `row` are the sample's. What is told of them is made when it is
    told: the device does not wait for that.
    """

    sample: "Sample"
    choices: HostChoices | None = None
    row: int = 0
    num_new: int = 0
    prompt_scores: tuple[TokenScore, ...] | None = None
    ending: Finished | Failed | None = None

    @property
    def scores(self) -> tuple[TokenScore, ...]:
        """Of the new ids."""
        if self.choices is None:
            return ()
        wanted = self.sample.request.num_alternatives
        return tuple(
            token_score(self.choices, step, self.row, wanted) for step in range(self.num_new)
        )

    def events(self) -> Iterator[EngineEvent]:
        """What the listener hears of it, in order."""
        if self.prompt_scores is not None:
            yield PromptScores(scores=self.prompt_scores)
        if self.num_new:
            yield NewTokens(scores=self.scores)
        if self.ending is not None:
            yield self.ending


class Sample:
    """One request, from the first chunk of its prompts to its end.

    `logits` are those behind the prompts that are in the cache, by slot. `ids` are chosen, words
    were last told at `told_at`.
    """

    def __init__(self, scheduled: ScheduledRequest, listener: Listener) -> None:
        request = scheduled.request
        self.scheduled, self.request, self.listener = scheduled, request, listener
        self.is_cancelled = False
        self.told_at = -math.inf
        self.logits: dict[int, Array] = {}
        self.prompt_scores: list[TokenScore] = []
        changes = active_transforms(request.sampling) & (PENALTIES | {"logit_bias"})
        self.form = CallForm(
            is_full=bool(changes) or request.constraint is not None,
            has_alternatives=request.num_alternatives > 0,
        )
        self._fixed = fixed_numbers(
            request.sampling, sample_index=request.sample_index, stop_ids=request.stop_ids
        )
        self.ids: list[int] = []

    @property
    def is_combined(self) -> bool:
        """Whether a function of the request's sees its logits: on the host, step by step."""
        return self.request.combine is not None

    @property
    def remaining(self) -> int:
        """Ids that may still be chosen."""
        return self.request.max_tokens - len(self.ids)

    def rows(self) -> list[SlotRow]:
        """A step of each of its prompts' rows."""
        pairs = zip(self.scheduled.slots, self.request.prompts, strict=True)
        return [self._row(slot, len(ids) + len(self.ids) - 1) for slot, ids in pairs]

    def choosing_row(self) -> SlotRow:
        """How it chooses from logits that are there."""
        return self._row(self.scheduled.slots[0], 0)

    def _row(self, slot: int, length: int) -> SlotRow:
        return SlotRow(
            slot=slot,
            token=self.ids[-1] if self.ids else 0,
            length=length,
            num_chosen=len(self.ids),
            remaining=self.remaining,
            has_bias=bool(self.request.sampling.logit_bias),
            fixed=self._fixed,
        )

    def permitted(self, allowed: NDArray[np.bool_]) -> NDArray[np.bool_] | Failed | None:
        """[V]: what its constraint lets it choose; None without one, Failed where that is nothing.

        Raises what the constraint does.
        """
        constraint = self.request.constraint
        if constraint is None:
            return None
        permitted = constraint.allowed()
        if permitted.shape != allowed.shape:
            raise UsageError(
                f"The constraint is about {permitted.size} ids, but the model has {allowed.size}."
            )
        if not (permitted & allowed).any():
            return Failed(
                message="The grammar or schema admits no token here: give it a way to go on.",
                is_transient=False,
            )
        return permitted

    def combined(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """[1, V] of the raw logits [k, V] of its prompts. Raises what the function does."""
        assert self.request.combine is not None
        found = np.asarray(self.request.combine(logits), np.float32)
        if found.shape != logits.shape[1:]:
            raise UsageError(
                f"The function that combines logits gave shape {found.shape}, not"
                f" {logits.shape[1:]}."
            )
        return found[None]

    def take(self, choices: HostChoices, row: int) -> Outcome:
        """Its choices of one call, up to its end."""
        before = len(self.ids)
        ending: Finished | Failed | None = None
        pairs = zip(choices.ids[:, row].tolist(), choices.logprobs[:, row].tolist(), strict=True)
        for step, (token, logprob) in enumerate(pairs):
            if not math.isfinite(logprob):
                ending = Failed(message=DAMAGED, is_transient=False)
            elif token in self.request.stop_ids:
                end = token_score(choices, step, row, self.request.num_alternatives)
                ending = Finished(reason="stop", end=end)
            else:
                ending = self._append(token)
            if ending is not None:
                break
        return Outcome(
            sample=self,
            choices=choices,
            row=row,
            num_new=len(self.ids) - before,
            ending=ending,
        )

    def _append(self, token: int) -> Finished | None:
        self.ids.append(token)
        constraint = self.request.constraint
        if constraint is not None:
            constraint.accept(token)
            if constraint.is_complete:
                return Finished(reason="stop")
        if not self.remaining:
            return Finished(reason="length")
        return None

    def take_prompt_scores(self, choices: HostChoices) -> None:
        """The scores behind the ids of a chunk, in order."""
        [prompt] = self.request.prompts
        if not self.prompt_scores:
            self.prompt_scores.append(TokenScore(id=prompt[0], logprob=None))
        count = min(len(choices.ids), len(prompt) - len(self.prompt_scores))
        self.prompt_scores += [
            token_score(choices, step, 0, self.request.num_alternatives) for step in range(count)
        ]


def token_score(choices: HostChoices, step: int, row: int, wanted: int) -> TokenScore:
    """One choice with its first `wanted` alternatives, of which those that are not allowed are
    left out."""
    ids = choices.alternative_ids[step, row, :wanted].tolist()
    logprobs = choices.alternative_logprobs[step, row, :wanted].tolist()
    pairs: Sequence[tuple[int, float]] = list(zip(ids, logprobs, strict=True))
    return TokenScore(
        id=int(choices.ids[step, row]),
        logprob=float(choices.logprobs[step, row]),
        alternatives=tuple(pair for pair in pairs if pair[1] > -np.inf),
    )
