"""Choosing the next id: mask, penalties, filters, draw and log probability in one compiled call.

Only the transforms that some row uses are compiled in; their values are traced, so that a new
temperature needs no new program. What a row gets depends on its own logits, parameters and
position alone, to the bit: not on the other rows, nor on the transforms that only they use.

A draw inverts the cumulative distribution: one random number per row instead of one per id as with
the Gumbel trick, 0.1 ms instead of 2 ms, and exact to 2**-30.

Log probabilities are the model's own: after disallowed ids are removed, before bias, penalties,
temperature and filters.

Axes: B batch  V vocabulary  A alternatives
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float32, Int32
from numpy.typing import NDArray

from bluejay.core.errors import CheckpointError, UsageError
from bluejay.generation.logits_processors import (
    add_logit_bias,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    penalize_frequency,
    penalize_presence,
    penalize_repetition,
    remove_disallowed,
    scale_temperature,
)
from bluejay.generation.random import draw_bits, scale_bits
from bluejay.generation.sampling_params import SamplingParams
from bluejay.generation.sampling_rows import (
    PENALTIES,
    SamplingRows,
    SamplingState,
    active_transforms,
    first_state,
    sampling_row,
)
from bluejay.generation.weights import pick, pick_largest, weigh
from bluejay.kernels.choosing import ChoiceFilters, choose_ids


class Choices(NamedTuple):
    """One id per row with the log probabilities that are reported, still on the device."""

    ids: Int32[Array, "B"]
    logprobs: Float32[Array, "B"]
    alternative_ids: Int32[Array, "B A"]
    alternative_logprobs: Float32[Array, "B A"]


class IdLogprob(NamedTuple):
    """An id and its log probability (natural logarithm)."""

    id: int
    logprob: float


@dataclass(frozen=True, kw_only=True)
class Choice:
    """The chosen id, its log probability, and the most probable ids, best first."""

    id: int
    logprob: float
    alternatives: tuple[IdLogprob, ...]


@partial(
    jax.jit,
    static_argnames=("transforms", "num_alternatives", "is_native"),
    donate_argnames=("state",),
)
def choose_rows(
    logits: Float32[Array, "B V"],
    rows: SamplingRows,
    state: SamplingState,
    *,
    transforms: frozenset[str],
    num_alternatives: int,
    is_native: bool = False,
) -> tuple[Choices, SamplingState]:
    """Choose one id per row; consumes the state and gives the next one.

    The native kernel, for logits of one CPU device, keeps what is written here in one pass.
    """
    if is_native:
        choices = _choose_natively(logits, rows, state, transforms, num_alternatives)
    else:
        scores = remove_disallowed(logits, rows.allowed)
        processed = _process(scores, rows, state, transforms)
        if "draw" not in transforms:
            ids = pick_largest(processed)
        else:
            ids = _draw(_filter(processed, rows, transforms), rows, state)
            if "greedy" in transforms:
                ids = jnp.where(rows.temperature == 0, pick_largest(processed), ids)
        choices = _report(scores, ids, num_alternatives)
    counts = state.counts
    if counts is not None:
        counts = counts.at[jnp.arange(choices.ids.shape[0]), choices.ids].add(1)
    return choices, replace(state, positions=state.positions + 1, counts=counts)


@partial(jax.jit, static_argnames=("num_alternatives", "is_native"))
def log_probabilities(
    logits: Float32[Array, "B V"],
    ids: Int32[Array, "B"],
    allowed: Bool[Array, "B V"],
    *,
    num_alternatives: int = 0,
    is_native: bool = False,
) -> Choices:
    """What `choose_rows` would report had it chosen these ids; for ids that are given.

    A disallowed id has the log probability -inf.
    """
    scores = remove_disallowed(logits, allowed)
    if not is_native:
        return _report(scores, ids, num_alternatives)
    rows = jnp.zeros(ids.shape[0], jnp.float32)
    greedy = ChoiceFilters(rows, rows, rows, rows, jnp.zeros_like(ids))
    found = choose_ids(logits, logits, allowed, greedy, jnp.zeros(ids.shape[0], jnp.uint32))
    return _reported(scores, ids, found.largest, found.log_sum, num_alternatives)


class Sampler:
    """Chooses the ids of one sample, one call per position, or tells a loop how to choose them.

    `allowed` [V] tells which ids may be chosen at all; `sample_index` tells the n samples of one
    request apart. Sample i of a seed draws the same at a position alone and in any batch.

    Raises UsageError when no id is allowed, or a biased id lies outside the vocabulary.
    """

    def __init__(
        self,
        params: SamplingParams,
        *,
        allowed: NDArray[np.bool_],
        sample_index: int = 0,
        num_alternatives: int = 0,
    ) -> None:
        self.params = params
        self.vocabulary_size = allowed.size
        self.num_chosen = 0
        self.transforms = active_transforms(params)
        self.num_alternatives = min(num_alternatives, allowed.size)
        self.rows = sampling_row(
            params, allowed=allowed, sample_index=sample_index, transforms=self.transforms
        )
        self.state = first_state(self.transforms, vocabulary_size=allowed.size)

    def with_transforms(self, transforms: frozenset[str]) -> tuple[SamplingRows, SamplingState]:
        """Row and first state for a batch whose programs have more transforms than this row's."""
        rows, state = self.rows, self.state
        if "logit_bias" in transforms and rows.logit_bias is None:
            rows = replace(rows, logit_bias=jnp.zeros((1, self.vocabulary_size), jnp.float32))
        if transforms & PENALTIES and state.counts is None:
            state = first_state(transforms, vocabulary_size=self.vocabulary_size)
        return rows, state

    def observe_prompt(self, ids: Iterable[int]) -> None:
        """Tell the repetition penalty which ids the prompt holds.

        Raises UsageError for an id outside the vocabulary.
        """
        prompt = np.fromiter(ids, dtype=np.int64)
        outside = prompt[(prompt < 0) | (prompt >= self.vocabulary_size)]
        if outside.size:
            raise UsageError(
                f"The prompt holds the id {outside[0]}, but the vocabulary ends at"
                f" {self.vocabulary_size - 1}: encode it with the model's own tokenizer."
            )
        if self.state.in_prompt is None:
            return
        seen = np.zeros((1, self.vocabulary_size), dtype=np.bool_)
        seen[0, prompt] = True
        self.state = replace(self.state, in_prompt=self.state.in_prompt | jnp.asarray(seen))

    def choose(self, logits: Float32[Array, "V"], *, is_native: bool = False) -> Choice:
        """Choose the next id from raw logits and count it.

        Raises CheckpointError when the logits of allowed ids are not numbers.
        """
        choices, self.state = _choose_row(
            logits,
            self.rows,
            self.state,
            transforms=self.transforms,
            num_alternatives=self.num_alternatives,
            is_native=is_native,
        )
        ids, logprobs, others, other_logprobs = jax.device_get(choices)
        return self.take(int(ids[0]), float(logprobs[0]), others[0], other_logprobs[0])

    def take(
        self,
        id_: int,
        logprob: float,
        alternative_ids: NDArray[np.int32],
        alternative_logprobs: NDArray[np.float32],
    ) -> Choice:
        """One row's choice as the device reported it. Raises CheckpointError as `choose` does."""
        if not np.isfinite(logprob):
            raise CheckpointError(
                f"The model's logits for new token {self.num_chosen} are not finite numbers:"
                " its weights are damaged or overflow in their data type, so load it in float32"
                " or fetch it again."
            )
        self.num_chosen += 1
        wanted = self.num_alternatives
        alternatives = zip(alternative_ids[:wanted], alternative_logprobs[:wanted], strict=True)
        return Choice(
            id=id_,
            logprob=logprob,
            alternatives=tuple(
                IdLogprob(int(other), float(value))
                for other, value in alternatives
                if value > -np.inf
            ),
        )


def joined_rows(
    samplers: Sequence[Sampler], *, rows: int
) -> tuple[frozenset[str], SamplingRows, SamplingState]:
    """Samplers before their first choice as one batch, filled up to `rows` with the last of them.

    The transforms are all that some sampler uses.
    """
    transforms = frozenset[str]().union(*(sampler.transforms for sampler in samplers))
    filled = [*samplers, *[samplers[-1]] * (rows - len(samplers))]
    own = [sampler.with_transforms(transforms) for sampler in filled]
    joined = jax.tree.map(lambda *parts: jnp.concatenate(parts), *own)
    return transforms, joined[0], joined[1]


@partial(
    jax.jit,
    static_argnames=("transforms", "num_alternatives", "is_native"),
    donate_argnames=("state",),
)
def _choose_row(
    logits: Float32[Array, "V"],
    rows: SamplingRows,
    state: SamplingState,
    *,
    transforms: frozenset[str],
    num_alternatives: int,
    is_native: bool,
) -> tuple[Choices, SamplingState]:
    chosen: tuple[Choices, SamplingState] = choose_rows(
        logits[None],
        rows,
        state,
        transforms=transforms,
        num_alternatives=num_alternatives,
        is_native=is_native,
    )
    return chosen


def _choose_natively(
    logits: jax.Array,
    rows: SamplingRows,
    state: SamplingState,
    transforms: frozenset[str],
    num_alternatives: int,
) -> Choices:
    draws = "draw" in transforms
    bits = draw_bits(rows.seeds, rows.samples, state.positions) if draws else rows.seeds[:, 0]
    filters = ChoiceFilters(rows.temperature, rows.top_p, rows.min_p, rows.typical_p, rows.top_k)
    processed = _process(logits, rows, state, transforms)
    found = choose_ids(logits, processed, rows.allowed, filters, bits)
    # Of none at all, no mask either.
    scores = remove_disallowed(logits, rows.allowed) if num_alternatives else logits
    return _reported(scores, found.ids, found.largest, found.log_sum, num_alternatives)


def _process(
    scores: jax.Array, rows: SamplingRows, state: SamplingState, transforms: frozenset[str]
) -> jax.Array:
    """Bias and penalties, which greedy rows see too."""
    if "logit_bias" in transforms:
        scores = add_logit_bias(scores, _present(rows.logit_bias))
    if "repetition_penalty" in transforms:
        seen = _present(state.in_prompt) | (_present(state.counts) > 0)
        scores = penalize_repetition(scores, seen, rows.repetition_penalty)
    if "presence_penalty" in transforms:
        scores = penalize_presence(scores, _present(state.counts), rows.presence_penalty)
    if "frequency_penalty" in transforms:
        scores = penalize_frequency(scores, _present(state.counts), rows.frequency_penalty)
    return scores


def _filter(scores: jax.Array, rows: SamplingRows, transforms: frozenset[str]) -> jax.Array:
    if "temperature" in transforms:
        scores = scale_temperature(scores, rows.temperature)
    if "top_k" in transforms:
        scores = keep_top_k(scores, rows.top_k)
    if "top_p" in transforms:
        scores = keep_top_p(scores, rows.top_p)
    if "min_p" in transforms:
        scores = keep_min_p(scores, rows.min_p)
    if "typical_p" in transforms:
        scores = keep_typical(scores, rows.typical_p)
    return scores


def _draw(scores: jax.Array, rows: SamplingRows, state: SamplingState) -> jax.Array:
    weights = weigh(scores)
    bits = draw_bits(rows.seeds, rows.samples, state.positions)
    return pick(weights.of_ids, scale_bits(bits, weights.total))


def _report(scores: jax.Array, ids: jax.Array, num_alternatives: int) -> Choices:
    weights = weigh(scores)
    # XLA's maximum passes over what is not a number; the report must not.
    is_damaged = jnp.any(jnp.isnan(scores), axis=-1, keepdims=True)
    largest = jnp.where(is_damaged, jnp.nan, weights.largest[:, None])
    return _reported(scores, ids, largest[:, 0], weights.log_sum, num_alternatives)


def _reported(
    scores: jax.Array,
    ids: jax.Array,
    largest: jax.Array,
    log_sum: jax.Array,
    num_alternatives: int,
) -> Choices:
    chosen = jnp.take_along_axis(scores, ids[:, None], axis=-1)[:, 0]
    best, best_ids = lax.top_k(scores, num_alternatives)
    others = best - largest[:, None] - log_sum[:, None]
    return Choices(ids, chosen - largest - log_sum, best_ids, others)


def _present(array: jax.Array | None) -> jax.Array:
    assert array is not None, "rows and state are built for the transforms they meet"
    return array
