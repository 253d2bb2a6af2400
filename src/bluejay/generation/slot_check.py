"""Check a draft for one row of a cache: one pass over several positions, then choices one by one.

As `speculation_check` does for a loop that has a cache of its own.

Axes: V vocabulary  T positions
"""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from bluejay.generation.draft_choices import Draft, RowBefore, choose_along
from bluejay.generation.sampling import Choices
from bluejay.generation.sampling_rows import SamplingState
from bluejay.generation.slot_programs import Masks, SlotForm, SlotState, choose
from bluejay.generation.slot_rows import RowInputs, packed_choices
from bluejay.kernels.decoding import SlotRows, native_decoding
from bluejay.model.cache import Cache
from bluejay.model.decoder import extend_slots
from bluejay.model.params import DecoderParams


@partial(jax.jit, static_argnames="form", donate_argnames="state")
def check_row(
    params: DecoderParams,
    rows: RowInputs,
    draft: Int32[Array, "T"],
    masks: Masks,
    *,
    state: SlotState,
    form: SlotForm,
) -> tuple[Int32[Array, "..."], SlotState]:
    """Choices of one plain row, packed as `decode_rows` does, after one pass over T positions.

    `draft` holds T - 1 ids that may come next, and last how many of them are meant.
    """
    assert not isinstance(state.cache, Cache), "only kernels give a position the bits of a step"
    token, remaining = rows.column("token"), rows.column("remaining")
    with native_decoding(form.is_native):
        ids = jnp.concatenate([token, draft[:-1]])[None]
        kept = SlotRows(cache=state.cache, slots=rows.column("slot"))
        x = extend_slots(params, ids, rows.column("length"), kept, config=form.config)
        scores = form.logits(params, x)[0]

    def choose_one(
        row: Float32[Array, "1 V"], made: Int32[Array, ""], state: SamplingState | None
    ) -> tuple[Choices, SamplingState | None]:
        return choose(row, rows, masks, None, rows.column("num_chosen") + made, form)[0], state

    end = choose_along(
        scores,
        Draft(draft, draft[-1]),
        RowBefore(token, remaining > 0, remaining, rows.stop_ids),
        choose_one,
        state=None,
        num_alternatives=form.num_alternatives,
    )
    return packed_choices(end.found, end.num_made), state
