"""The decode loop: several steps of several rows in one call, ids drawn where the logits are.

Nothing is allocated and nothing compiled between two steps: cache and state are worked on in
place, and how many steps a call takes is a number, not a shape. A call ends early when no row
goes on.

A single row can also check a draft: see `speculation_check`.

Axes: R rows  V vocabulary  M most steps of a call  A alternatives  X stop ids
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32
from numpy.typing import NDArray

from bluejay.generation.decode_state import (
    MOST_STEPS,
    LoopForm,
    LoopRows,
    LoopState,
    is_stop,
    no_choices,
    noted,
)
from bluejay.generation.device_arrays import on_device
from bluejay.generation.runner import Prefix, Runner, num_compiled
from bluejay.generation.sampling import (
    Choice,
    Choices,
    Sampler,
    joined_rows,
)
from bluejay.generation.sampling_rows import SamplingRows, SamplingState
from bluejay.generation.speculation_check import check_draft
from bluejay.kernels.decoding import native_decoding
from bluejay.model.decoder import extend
from bluejay.model.params import DecoderParams


class DecodeLoop:
    """Rows that are decoded together until each has ended.

    A row ends with a stop id, which is reported and not run, or with its last allowed choice. Its
    choices depend on its own prompt and sampler alone.
    """

    def __init__(
        self,
        runner: Runner,
        prefixes: Sequence[Prefix],
        samplers: Sequence[Sampler],
        *,
        stop_ids: Sequence[frozenset[int]],
        max_tokens: Sequence[int],
    ) -> None:
        self._runner = runner
        rows = runner.rows_for(len(prefixes))
        transforms, sampling_rows, sampling = joined_rows(samplers, rows=rows)
        self._form = LoopForm(
            config=runner.config,
            is_native=runner.is_native,
            mesh=runner.mesh,
            transforms=transforms,
            num_alternatives=max(sampler.num_alternatives for sampler in samplers),
        )
        self._samplers = samplers
        group = runner.group(prefixes, reserve=max(max_tokens), rows=rows)
        self.capacity: int = group.cache.layers[0].key.shape[2]
        self._length = group.lengths[0]
        blank = rows - len(prefixes)
        self._ends = stop_ids
        padded = _padded_stop_ids([*stop_ids, *[frozenset[int]()] * blank])
        self._rows = LoopRows(sampling=sampling_rows, stop_ids=on_device(padded, np.int32))
        self._remaining = np.array([*max_tokens, *[0] * blank], np.int32)
        self._first_logits = group.logits
        self._state = LoopState(
            tokens=on_device([0] * rows, np.int32),
            lengths=on_device(group.lengths, np.int32),
            is_live=on_device(self._remaining > 0, np.bool_),
            cache=group.cache,
            sampling=sampling,
        )
        self._has_begun = False

    @property
    def form(self) -> LoopForm:
        """What the loop's programs are compiled for, apart from the shapes of its arrays."""
        return self._form

    @property
    def has_begun(self) -> bool:
        """Whether the first choices are made: those after them take steps."""
        return self._has_begun

    @property
    def room(self) -> int:
        """Positions that are left in the cache of a loop of one row."""
        assert len(self._remaining) == 1
        return self.capacity - self._length

    @property
    def remaining(self) -> int:
        """Choices that a loop of one row may still make."""
        [count] = self._remaining
        return int(count)

    @property
    def sampling(self) -> tuple[SamplingRows, SamplingState]:
        """How the next choice will be made; valid until it is."""
        return self._rows.sampling, self._state.sampling

    @property
    def num_weight_bytes(self) -> int:
        """What a step reads of parameters, nearly."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves(self._runner.params))

    def num_programs(self) -> int:
        """How many programs of steps and of checked drafts all loops have compiled."""
        return num_compiled(decode_steps) + num_compiled(check_draft)

    def advance(self, num_steps: int) -> list[list[Choice]]:
        """At most `num_steps` more choices of every row that has not ended.

        The very first choices come from the prompts' own logits, and cost no step. Raises
        CheckpointError when the logits of allowed ids are not numbers.
        """
        if not self._has_begun:
            self._has_begun = True
            choices, self._state = _choose_first(
                self._first_logits, self._rows, state=self._state, form=self._form
            )
            return self._take(jax.tree.map(lambda array: array[None], choices), 1)
        limit = on_device(min(num_steps, MOST_STEPS), np.int32)
        found, count, self._state = decode_steps(
            self._runner.operands,
            self._rows,
            on_device(self._remaining, np.int32),
            limit,
            state=self._state,
            form=self._form,
        )
        self._length += int(count)
        return self._take(found, int(count))

    def check(self, drafted: Sequence[int], *, positions: int) -> list[Choice]:
        """Choices of a loop of one row that has begun, after one pass over so many positions.

        The same as `advance` makes in as many steps: those that agree with the draft, and the one
        after them. `positions` is at least one more than ids are drafted, at most MOST_STEPS and
        no more than `room`. Raises CheckpointError as `advance` does.
        """
        assert self._has_begun
        assert len(drafted) < positions <= min(MOST_STEPS, self.room)
        ids = [*drafted, *[0] * (positions - 1 - len(drafted))]
        found, count, self._state = check_draft(
            self._runner.operands,
            self._rows,
            on_device(self._remaining, np.int32),
            (on_device(ids, np.int32), on_device(len(drafted), np.int32)),
            state=self._state,
            form=self._form,
        )
        self._length += int(count)
        [choices] = self._take(found, int(count))
        return choices

    def end(self, row: int) -> None:
        """The row makes no more choices."""
        self._remaining[row] = 0

    def _take(self, found: Choices, count: int) -> list[list[Choice]]:
        """The new choices of every row up to its end."""
        taken: list[list[Choice]] = []
        ids, logprobs, others, other_logprobs = jax.device_get(found)
        for row, sampler in enumerate(self._samplers):
            taken.append([])
            for step in range(count):
                if self._remaining[row] == 0:
                    break
                at = (step, row)
                choice = sampler.take(
                    int(ids[at]), float(logprobs[at]), others[at], other_logprobs[at]
                )
                taken[row].append(choice)
                self._remaining[row] -= 1
                if choice.id in self._ends[row]:
                    self._remaining[row] = 0
        return taken


@partial(jax.jit, static_argnames=("form",), donate_argnames=("state",))
def decode_steps(
    params: DecoderParams,
    rows: LoopRows,
    remaining: Int32[Array, "R"],
    num_steps: Int32[Array, ""],
    *,
    state: LoopState,
    form: LoopForm,
) -> tuple[Choices, Int32[Array, ""], LoopState]:
    """(choices [M, R …] of which the first `count` are made, count, next state).

    `remaining` is how many choices each row may still make. Consumes the state.
    """
    num_rows, capacity = remaining.shape[0], state.cache.layers[0].key.shape[2]
    empty = no_choices(num_rows, form.num_alternatives)
    state = replace(state, is_live=state.is_live & (remaining > 0))

    def goes_on(carry: tuple[Int32[Array, ""], Choices, LoopState]) -> Bool[Array, ""]:
        step, _, now = carry
        return (step < num_steps) & jnp.any(now.is_live)

    def take_step(
        carry: tuple[Int32[Array, ""], Choices, LoopState],
    ) -> tuple[Int32[Array, ""], Choices, LoopState]:
        step, found, now = carry
        # A row that has ended stands still; what it writes behind its end, nobody reads.
        places = jnp.minimum(now.lengths, capacity - 1)
        with native_decoding(form.is_native):
            x, cache = extend(params, now.tokens[:, None], places, now.cache, config=form.config)
            scores = form.logits(params, x)[:, 0]
        choices, sampling = form.choose(scores, rows, now.sampling)
        found = noted(found, choices, step)
        is_live = now.is_live & ~is_stop(choices.ids, rows.stop_ids) & (step + 1 < remaining)
        later = LoopState(
            tokens=choices.ids,
            lengths=now.lengths + now.is_live.astype(jnp.int32),
            is_live=is_live,
            cache=form.kept(cache),
            sampling=sampling,
        )
        return step + 1, found, later

    count, found, state = jax.lax.while_loop(
        goes_on, take_step, (jnp.zeros((), jnp.int32), empty, state)
    )
    return found, count, state


@partial(jax.jit, static_argnames=("form",), donate_argnames=("state",))
def _choose_first(
    scores: Float32[Array, "R V"], rows: LoopRows, *, state: LoopState, form: LoopForm
) -> tuple[Choices, LoopState]:
    choices, sampling = form.choose(scores, rows, state.sampling)
    is_live = state.is_live & ~is_stop(choices.ids, rows.stop_ids)
    return choices, replace(state, tokens=choices.ids, is_live=is_live, sampling=sampling)


def _padded_stop_ids(stop_ids: Sequence[frozenset[int]]) -> NDArray[np.int32]:
    """[R, X], filled up with -1, X a multiple of 4: few widths, few programs."""
    width = -(-max(1, max(map(len, stop_ids))) // 4) * 4
    padded = np.full((len(stop_ids), width), -1, np.int32)
    for row, ids in enumerate(stop_ids):
        padded[row, : len(ids)] = sorted(ids)
    return padded
