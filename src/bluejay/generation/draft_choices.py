"""Choices along a draft, one by one, from the logits of a single pass over its positions.

Each is made by the very function and state of ordinary steps, up to the first that ends the row or
is not what was drafted (docs/decisions/0017).

Axes: V vocabulary  T positions  X stop ids
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from bluejay.generation.decode_state import is_stop, no_choices, noted
from bluejay.generation.sampling import Choices
from bluejay.generation.sampling_rows import SamplingState

State = SamplingState | None
Choose = Callable[[Float32[Array, "1 V"], Int32[Array, ""], State], tuple[Choices, State]]
"""(logits of a position, choices made before it, state) to the choice and the next state. A caller
who counts otherwise has no state."""


class Draft(NamedTuple):
    """Ids that may come next, of which the first `num_meant` count; the last place is no id's."""

    due: Int32[Array, "T"]
    num_meant: Int32[Array, ""]


class RowBefore(NamedTuple):
    """The row as the pass found it."""

    token: Int32[Array, "1"]  # chosen, and the first that the pass ran
    is_live: Bool[Array, "1"]
    remaining: Int32[Array, "1"]
    stop_ids: Int32[Array, "1 X"]


class DraftChoices(NamedTuple):
    """What is known after the first `num_made` choices."""

    num_made: Int32[Array, ""]
    found: Choices
    token: Int32[Array, "1"]
    is_live: Bool[Array, "1"]
    agrees: Bool[Array, ""]
    state: State


def choose_along(
    scores: Float32[Array, "T V"],
    draft: Draft,
    row: RowBefore,
    choose: Choose,
    *,
    state: State,
    num_alternatives: int,
) -> DraftChoices:
    """Choices from `scores` as far as the draft agrees with them, and one more."""

    def goes_on(now: DraftChoices) -> Bool[Array, ""]:
        return now.agrees & now.is_live[0]

    def choose_next(now: DraftChoices) -> DraftChoices:
        made = now.num_made
        choices, later = choose(jax.lax.dynamic_slice_in_dim(scores, made, 1), made, now.state)
        return DraftChoices(
            num_made=made + 1,
            found=noted(now.found, choices, made),
            token=choices.ids,
            is_live=~is_stop(choices.ids, row.stop_ids) & (made + 1 < row.remaining),
            agrees=(made < draft.num_meant) & (choices.ids[0] == draft.due[made]),
            state=later,
        )

    start = DraftChoices(
        num_made=jnp.zeros((), jnp.int32),
        found=no_choices(1, num_alternatives),
        token=row.token,
        is_live=row.is_live,
        agrees=jnp.asarray(True),
        state=state,
    )
    end: DraftChoices = jax.lax.while_loop(goes_on, choose_next, start)
    return end
