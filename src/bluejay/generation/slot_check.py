"""Check a draft for one row of a cache: one pass over several positions, then choices one by one.

As `speculation_check` does for a loop that has a cache of its own.

Axes: V vocabulary  T positions
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from bluejay.generation.decode_state import is_stop, no_choices, noted
from bluejay.generation.sampling import Choices
from bluejay.generation.slot_programs import Masks, SlotForm, SlotState, choose
from bluejay.generation.slot_rows import RowInputs, packed_choices
from bluejay.kernels.decoding import SlotRows
from bluejay.model.cache import Cache
from bluejay.model.decoder import extend_slots, logits
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

    `draft` holds T - 1 ids that may come next, and last how many of them are meant. Choices are
    those of single steps, up to the first that ends the row or is not what was drafted; what the
    pass leaves in the cache behind that place is overwritten (docs/decisions/0017).
    """
    assert not isinstance(state.cache, Cache), "only kernels give a position the bits of a step"
    remaining, num_chosen = rows.column("remaining"), rows.column("num_chosen")
    size = draft.shape[0]
    with form.native():
        ids = jnp.concatenate([rows.column("token"), draft[:-1]])[None]
        kept = SlotRows(cache=state.cache, slots=rows.column("slot"))
        x = extend_slots(params, ids, rows.column("length"), kept, config=form.config)
        scores = logits(params, x, config=form.config)[0]

    def goes_on(now: _Checked) -> Bool[Array, ""]:
        return now.agrees & now.is_live[0]

    def choose_next(now: _Checked) -> _Checked:
        made = now.num_made
        row = jax.lax.dynamic_slice_in_dim(scores, made, 1)
        choices, _ = choose(row, rows, masks, None, num_chosen + made, form)
        return _Checked(
            num_made=made + 1,
            found=noted(now.found, choices, made),
            is_live=~is_stop(choices.ids, rows.stop_ids) & (made + 1 < remaining),
            agrees=(made < draft[-1]) & (choices.ids[0] == draft[jnp.minimum(made, size - 1)]),
        )

    start = _Checked(
        num_made=jnp.zeros((), jnp.int32),
        found=no_choices(1, form.num_alternatives),
        is_live=remaining > 0,
        agrees=jnp.asarray(True),
    )
    end = jax.lax.while_loop(goes_on, choose_next, start)
    return packed_choices(end.found, end.num_made), state


class _Checked(NamedTuple):
    """What is known of a draft after the first `num_made` choices."""

    num_made: Int32[Array, ""]
    found: Choices
    is_live: Bool[Array, "1"]
    agrees: Bool[Array, ""]
