"""Check a draft: one pass over several positions, then choices one by one.

Each choice is made by the very function and state of ordinary steps, up to the first that differs
from the draft. What the pass left in the cache behind that place is never read: attention ends at
a query's position, and the next pass begins by overwriting it (docs/decisions/0017).

Axes: V vocabulary  M most steps of a call  X stop ids  T positions  G drafted ids, T - 1
"""

from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from bluejay.generation.decode_state import (
    LoopForm,
    LoopRows,
    LoopState,
    is_stop,
    no_choices,
    noted,
)
from bluejay.generation.sampling import Choices
from bluejay.generation.sampling_rows import SamplingState
from bluejay.kernels.decoding import native_decoding
from bluejay.model.decoder import extend, logits
from bluejay.model.params import DecoderParams


class Draft(NamedTuple):
    """Ids that may come next: the first `num_meant`; the others fill up a shape."""

    ids: Int32[Array, "G"]
    num_meant: Int32[Array, ""]


@partial(jax.jit, static_argnames=("form",), donate_argnames=("state",))
def check_draft(
    params: DecoderParams,
    rows: LoopRows,
    remaining: Int32[Array, "1"],
    draft: Draft,
    *,
    state: LoopState,
    form: LoopForm,
) -> tuple[Choices, Int32[Array, ""], LoopState]:
    """As `decode_steps` for one row, in one pass over the id that is due and the drafted ones.

    Makes choices up to the first that ends the row or is not what was drafted.
    """
    ids = jnp.concatenate([state.tokens, draft.ids])[None]
    with native_decoding() if form.is_native else nullcontext():
        x, cache = extend(params, ids, state.lengths, state.cache, config=form.config)
        scores = logits(params, x, config=form.config)[0]
    due = jnp.concatenate([draft.ids, jnp.zeros((1,), jnp.int32)])

    def goes_on(now: _Checked) -> Bool[Array, ""]:
        return now.agrees & now.is_live[0]

    def choose_next(now: _Checked) -> _Checked:
        row = jax.lax.dynamic_slice_in_dim(scores, now.num_made, 1)
        choices, sampling = form.choose(row, rows, now.sampling)
        is_live = ~is_stop(choices.ids, rows.stop_ids) & (now.num_made + 1 < remaining)
        return _Checked(
            num_made=now.num_made + 1,
            found=noted(now.found, choices, now.num_made),
            tokens=choices.ids,
            is_live=is_live,
            agrees=(now.num_made < draft.num_meant) & (choices.ids[0] == due[now.num_made]),
            sampling=sampling,
        )

    start = _Checked(
        num_made=jnp.zeros((), jnp.int32),
        found=no_choices(1, form.num_alternatives),
        tokens=state.tokens,
        is_live=state.is_live & (remaining > 0),
        agrees=jnp.asarray(True),
        sampling=state.sampling,
    )
    end = jax.lax.while_loop(goes_on, choose_next, start)
    later = LoopState(
        tokens=end.tokens,
        lengths=state.lengths + end.num_made,
        is_live=end.is_live,
        cache=cache,
        sampling=end.sampling,
    )
    return end.found, end.num_made, later


class _Checked(NamedTuple):
    """What is known of a draft after the first `num_made` choices."""

    num_made: Int32[Array, ""]
    found: Choices
    tokens: Int32[Array, "1"]
    is_live: Bool[Array, "1"]
    agrees: Bool[Array, ""]
    sampling: SamplingState
