"""Drafts by a smaller model, which chooses by the same parameters and the same random numbers.

Equal draws couple the two: where their distributions are alike, one random number mostly picks
the same id from both. A draft may be anything, so nothing here has to keep its bits.

Axes: V vocabulary  G ids that are fed
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from bluejay.generation.decode_loop import DecodeLoop
from bluejay.generation.decode_state import MOST_STEPS, LoopForm
from bluejay.generation.device_arrays import on_device
from bluejay.generation.runner import Prefix, Runner, num_compiled
from bluejay.generation.sampling import choose_rows
from bluejay.generation.sampling_rows import SamplingRows, SamplingState
from bluejay.generation.speculation_length import Acceptance
from bluejay.kernels.decoding import native_decoding
from bluejay.model.cache import Cache
from bluejay.model.decoder import extend
from bluejay.model.params import DecoderParams

# Ids that are run one by one before the first is drafted; more go through prefill.
_MOST_FED: Final = 4
# Of a model that drafts for another: assumed before its first draft.
_PRIOR: Final = 0.7


class Feed(NamedTuple):
    """What a call of `draft_ids` begins with."""

    ids: Int32[Array, "G"]  # the first `num_fed` are not in the cache yet
    num_fed: Int32[Array, ""]
    start: Int32[Array, ""]  # positions in the cache
    wanted: Int32[Array, ""]  # ids to draft


class ModelDrafter:
    """Drafts for one loop, with a cache of its own. Its context may be shorter: it then stops.

    The prompt is run when the first draft is asked for.
    """

    is_free = False

    def __init__(self, runner: Runner, prompt_ids: Sequence[int], loop: DecodeLoop) -> None:
        self._runner, self._loop = runner, loop
        self._form = LoopForm(
            config=runner.config,
            is_native=runner.is_native,
            mesh=runner.mesh,
            transforms=loop.form.transforms,
            num_alternatives=0,
        )
        # The tokenizer's ids are both models'; rows that fill up a vocabulary may be fewer here.
        self._last_id = runner.config.vocab_size - 1
        self._ids = [min(token, self._last_id) for token in prompt_ids]
        self._prefix: Prefix | None = None
        # The cache holds the first `_sure` ids of the text, and then drafted ones.
        self._sure, self._drafted = 0, list[int]()
        self.cost = _num_bytes(runner.params) / loop.num_weight_bytes

    def acceptance(self) -> Acceptance:
        """One kind: nothing tells this model's drafts apart."""
        return Acceptance((0,), (_PRIOR,))

    def kind(self) -> int:
        """0, or -1 where the context is full."""
        fits = len(self._ids) + MOST_STEPS <= self._runner.config.context_length
        return 0 if fits else -1

    def extend(self, ids: Sequence[int]) -> None:
        """Nothing is run until a draft is asked for."""
        self._ids += [min(token, self._last_id) for token in ids]

    def proposal(self, count: int) -> list[int]:
        """What this model would write."""
        prefix = self._caught_up()
        fed = self._ids[prefix.length :]
        padded = [*fed, *[0] * (_MOST_FED - len(fed))]
        feed = Feed(
            ids=on_device(padded, np.int32),
            num_fed=on_device(len(fed), np.int32),
            start=on_device(prefix.length, np.int32),
            wanted=on_device(count, np.int32),
        )
        rows, state = self._loop.sampling
        drafted, cache = draft_ids(
            self._runner.operands, feed, rows, state, cache=prefix.cache, form=self._form
        )
        found: list[int] = jax.device_get(drafted)[:count].tolist()
        # The last one was chosen and not run.
        self._sure, self._drafted = len(self._ids), found[:-1]
        self._prefix = replace(prefix, cache=cache)
        return found

    def _caught_up(self) -> Prefix:
        """The cache with all but at most _MOST_FED ids of the text, and with room for a draft."""
        if self._prefix is None:
            self._prefix, self._sure = self._runner.start(self._ids[:-1]), len(self._ids) - 1
        coming = self._ids[self._sure : -1]
        agreed = self._sure
        for token, drafted in zip(coming, self._drafted, strict=False):
            if token != drafted:
                break
            agreed += 1
        prefix = replace(self._prefix, length=agreed)
        if len(self._ids) - agreed > _MOST_FED:
            prefix = self._runner.extend(prefix, self._ids[agreed:-1])
        return self._runner.grow(prefix, reserve=_MOST_FED + MOST_STEPS)

    def num_programs(self) -> int:
        """How many programs drafting has compiled, for this runner and others."""
        return num_compiled(draft_ids) + self._runner.num_programs


@partial(jax.jit, static_argnames=("form",), donate_argnames=("cache",))
def draft_ids(
    params: DecoderParams,
    feed: Feed,
    rows: SamplingRows,
    state: SamplingState,
    *,
    cache: Cache,
    form: LoopForm,
) -> tuple[Int32[Array, "M"], Cache]:
    """Run the ids that are fed, then choose and run `wanted` more, of which the last is not run."""
    num_ids = rows.allowed.shape[1]

    def goes_on(now: _Drafting) -> Bool[Array, ""]:
        return now.step < feed.num_fed + feed.wanted - 1

    def take_step(now: _Drafting) -> _Drafting:
        fed = feed.ids[jnp.minimum(now.step, feed.ids.shape[0] - 1)]
        token = jnp.where(now.step < feed.num_fed, fed, now.last)[None, None]
        with native_decoding(form.is_native):
            start = (feed.start + now.step)[None]
            x, later = extend(params, token, start, now.cache, config=form.config)
            whole = form.logits(params, x)[:, 0]
            scores = _of_vocabulary(whole, num_ids)
        number = now.step - feed.num_fed + 1
        chosen, moved = choose_rows(
            scores,
            rows,
            now.state,
            transforms=form.transforms,
            num_alternatives=0,
            is_native=form.is_native,
        )
        # What is fed is known: the choice after it is nobody's.
        state = jax.tree.map(lambda new, old: jnp.where(number >= 0, new, old), moved, now.state)
        found = now.found.at[jnp.maximum(number, 0)].set(chosen.ids[0])
        last = jnp.minimum(chosen.ids[0], form.config.vocab_size - 1)
        return _Drafting(now.step + 1, last, found, state, form.kept(later))

    zero = jnp.zeros((), jnp.int32)
    start = _Drafting(zero, zero, jnp.zeros(MOST_STEPS, jnp.int32), state, cache)
    end = jax.lax.while_loop(goes_on, take_step, start)
    return end.found, end.cache


class _Drafting(NamedTuple):
    """What one drafted id hands to the next."""

    step: Int32[Array, ""]
    last: Int32[Array, ""]
    found: Int32[Array, "M"]
    state: SamplingState
    cache: Cache


def _of_vocabulary(scores: Float[Array, "1 V"], num_ids: int) -> Float[Array, "1 W"]:
    """Scores of as many ids as the other model has rows; what is missing cannot be chosen."""
    missing = num_ids - scores.shape[1]
    if missing <= 0:
        return scores[:, :num_ids]
    return jnp.pad(scores, ((0, 0), (0, missing)), constant_values=-jnp.inf)


def _num_bytes(params: DecoderParams) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))
