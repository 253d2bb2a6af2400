"""Check a draft: one pass over several positions, then choices one by one (`draft_choices`).

What the pass left in the cache behind the last choice is never read: attention ends at a query's
position, and the next pass begins by overwriting it (docs/decisions/0017).

Axes: G drafted ids
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from bluejay.generation.decode_state import LoopForm, LoopRows, LoopState
from bluejay.generation.draft_choices import Draft, RowBefore, choose_along
from bluejay.generation.sampling import Choices
from bluejay.generation.sampling_rows import SamplingState
from bluejay.kernels.decoding import native_decoding
from bluejay.model.decoder import extend
from bluejay.model.params import DecoderParams


@partial(jax.jit, static_argnames=("form",), donate_argnames=("state",))
def check_draft(
    params: DecoderParams,
    rows: LoopRows,
    remaining: Int32[Array, "1"],
    drafted: tuple[Int32[Array, "G"], Int32[Array, ""]],
    *,
    state: LoopState,
    form: LoopForm,
) -> tuple[Choices, Int32[Array, ""], LoopState]:
    """As `decode_steps` for one row, in one pass over the id that is due and the drafted ones.

    `drafted` are ids, and how many of them are meant: the others fill up a shape.
    """
    ids, num_meant = drafted
    with native_decoding(form.is_native):
        run = jnp.concatenate([state.tokens, ids])[None]
        x, cache = extend(params, run, state.lengths, state.cache, config=form.config)
        scores = form.logits(params, x)[0]

    def choose(
        row: Float32[Array, "1 V"], _: Int32[Array, ""], sampling: SamplingState | None
    ) -> tuple[Choices, SamplingState | None]:
        assert sampling is not None
        return form.choose(row, rows, sampling)

    end = choose_along(
        scores,
        Draft(jnp.concatenate([ids, jnp.zeros((1,), jnp.int32)]), num_meant),
        RowBefore(state.tokens, state.is_live & (remaining > 0), remaining, rows.stop_ids),
        choose,
        state=state.sampling,
        num_alternatives=form.num_alternatives,
    )
    assert end.state is not None
    later = LoopState(
        tokens=end.token,
        lengths=state.lengths + end.num_made,
        is_live=end.is_live,
        cache=form.kept(cache),
        sampling=end.state,
    )
    return end.found, end.num_made, later
