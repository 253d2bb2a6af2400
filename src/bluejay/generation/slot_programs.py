"""The programs of an engine: what runs over some rows of one cache, each of a static shape.

A cache is either kept by the native library, and then programs take its number and any rows of it
in any order, or it is arrays, and then a step runs over all of its rows at once: XLA gives a row
the same bits in one shape alone (docs/decisions/0019).

Axes: R rows of a call  S slots  T tokens of one chunk  P tokens of a piece of it  V vocabulary
      M most steps of a call  C numbers of a choice
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass
from jaxtyping import Array, Bool, Float, Float32, Int32

from bluejay.generation.decode_state import is_stop, no_choices, noted
from bluejay.generation.program_form import ProgramForm
from bluejay.generation.sampling import Choices, choose_rows, log_probabilities
from bluejay.generation.sampling_rows import FILTERS, PENALTIES, SamplingState
from bluejay.generation.slot_rows import RowInputs, choice_numbers, packed_choices
from bluejay.kernels.decoding import SlotRows, native_decoding, post_choices
from bluejay.model.cache import Cache
from bluejay.model.decoder import extend, extend_slots
from bluejay.model.params import DecoderParams

MOST_ALTERNATIVES: Final = 20
# Logits of a whole chunk would be 50 MB for 256 tokens and 49,152 ids: so many rows at a time.
_SCORED_AT_ONCE = 16
PLAIN: Final = frozenset({"draw", "greedy"}) | FILTERS
FULL: Final = PLAIN | PENALTIES | {"logit_bias"}
# A kept cache is one number, arrays are the cache itself.
SlotsCache = Cache | Int32[Array, "1"]


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class SlotTables:
    """What penalties and bias need to know of each slot; the row behind the last is nobody's."""

    in_prompt: Array  # bool S+1 V
    counts: Array  # int32 S+1 V, of generated ids
    logit_bias: Array  # float32 S+1 V


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class SlotState:
    """What calls work on in place; without tables rows are plain: neither penalties nor bias."""

    cache: SlotsCache
    tables: SlotTables | None = None


class Masks(NamedTuple):
    """Ids that may be chosen at all, and those of each row of this call."""

    allowed: Bool[Array, "V"]
    permitted: Bool[Array, "R V"] | None = None


@dataclass(frozen=True, kw_only=True)
class SlotForm(ProgramForm):
    """What a program is compiled for."""

    num_alternatives: int = 0


@partial(jax.jit, static_argnames="form", donate_argnames="state")
def run_chunk(
    params: DecoderParams,
    ids: Int32[Array, "1 T"],
    place: Int32[Array, "3"],
    *,
    state: SlotState,
    form: SlotForm,
) -> tuple[Float[Array, "1 V"], SlotState]:
    """Run a chunk of the row `place[0]` from position `place[1]` on; logits of token `place[2]`."""
    with native_decoding(form.is_native):
        x, cache = _extend_one(params, ids, place, state.cache, form)
        return _logits_at(params, x, place[2], form), replace(state, cache=cache)


@partial(jax.jit, static_argnames="form", donate_argnames="state")
def score_chunk(
    params: DecoderParams,
    ids: Int32[Array, "2 T"],
    place: Int32[Array, "3"],
    masks: Masks,
    *,
    state: SlotState,
    form: SlotForm,
) -> tuple[Float[Array, "1 V"], Int32[Array, "..."], SlotState]:
    """As `run_chunk` of `ids[0]`, with the log probability of `ids[1, t]` behind token t, up to
    token `place[2]`."""
    with native_decoding(form.is_native):
        x, cache = _extend_one(params, ids[:1], place, state.cache, form)
        last = _logits_at(params, x, place[2], form)

        def score(piece: tuple[Float[Array, "1 P D"], Int32[Array, "P"]]) -> Choices:
            scores = form.logits(params, piece[0])[0]
            found: Choices = log_probabilities(
                scores,
                piece[1],
                jnp.broadcast_to(masks.allowed[None], scores.shape),
                num_alternatives=form.num_alternatives,
                is_native=form.is_native,
            )
            return found

        pieces = x.reshape(-1, 1, _SCORED_AT_ONCE, x.shape[-1])
        scored = jax.lax.map(score, (pieces, ids[1].reshape(-1, _SCORED_AT_ONCE)))
    found = jax.tree.map(lambda array: array.reshape(-1, 1, *array.shape[2:]), scored)
    return last, packed_choices(found, place[2] + 1), replace(state, cache=cache)


@partial(jax.jit, static_argnames="form", donate_argnames="tables")
def choose_first(
    scores: Float32[Array, "1 V"],
    rows: RowInputs,
    masks: Masks,
    *,
    tables: SlotTables | None,
    form: SlotForm,
) -> tuple[Int32[Array, "..."], SlotTables | None]:
    """An id from logits that are there: of a prompt, or combined ones."""
    choices, tables = choose(scores, rows, masks, tables, rows.column("num_chosen"), form)
    one_step = jax.tree.map(lambda array: array[None], choices)
    return packed_choices(one_step, jnp.ones((), jnp.int32)), tables


@partial(jax.jit, static_argnames="form", donate_argnames="state")
def decode_rows(
    params: DecoderParams,
    rows: RowInputs,
    num_steps: Int32[Array, ""],
    masks: Masks,
    *,
    state: SlotState,
    form: SlotForm,
) -> tuple[Int32[Array, "..."], SlotState]:
    """Choices and the state: packed, or, over a kept cache, the number of steps alone, of which
    each has posted its choices.

    A row takes its `remaining` steps or ends with a stop id. The call ends when no row goes on;
    over a kept cache with the first row that ends, whose place another one may take, or with the
    step in which somebody halts its calls.
    """
    remaining, num_chosen = rows.column("remaining"), rows.column("num_chosen")

    def take_step(now: _Step) -> _Step:
        with native_decoding(form.is_native):
            at = now.tokens, now.lengths
            x, cache = _extend_rows(params, rows, at, now.state.cache, form)
            scores = form.logits(params, x)[:, 0]
        choices, tables = choose(
            scores, rows, masks, now.state.tables, num_chosen + now.number, form
        )
        number = now.number + 1
        is_live = now.is_live & (number < remaining) & ~is_stop(choices.ids, rows.stop_ids)
        goes_on = (number < num_steps) & jnp.any(is_live)
        found = now.found
        if found is not None:
            found = noted(found, choices, now.number)
        else:
            assert not isinstance(cache, Cache)
            nobody_ended = jnp.all(is_live == now.is_live)
            goes_on = post_choices(cache, choice_numbers(choices), goes_on & nobody_ended)
        return _Step(
            number=number,
            found=found,
            tokens=choices.ids,
            lengths=now.lengths + now.is_live.astype(jnp.int32),
            is_live=is_live,
            goes_on=goes_on,
            state=SlotState(cache=cache, tables=tables),
        )

    is_live, posts = remaining > 0, not isinstance(state.cache, Cache)
    start = _Step(
        number=jnp.zeros((), jnp.int32),
        found=None if posts else no_choices(remaining.shape[0], form.num_alternatives),
        tokens=rows.column("token"),
        lengths=rows.column("length"),
        is_live=is_live,
        goes_on=(num_steps > 0) & jnp.any(is_live),
        state=state,
    )
    end = jax.lax.while_loop(lambda now: now.goes_on, take_step, start)
    found = end.number if end.found is None else packed_choices(end.found, end.number)
    return found, end.state


class _Step(NamedTuple):
    """What one step hands to the next."""

    number: Int32[Array, ""]
    found: Choices | None
    tokens: Int32[Array, "R"]
    lengths: Int32[Array, "R"]
    is_live: Bool[Array, "R"]
    goes_on: Bool[Array, ""]
    state: SlotState


@partial(jax.jit, static_argnames="form", donate_argnames="state")
def peek_rows(
    params: DecoderParams, rows: RowInputs, *, state: SlotState, form: SlotForm
) -> tuple[Float32[Array, "R V"], SlotState]:
    """One step that ends with the logits."""
    with native_decoding(form.is_native):
        now = rows.column("token"), rows.column("length")
        x, cache = _extend_rows(params, rows, now, state.cache, form)
        scores: Array = form.logits(params, x)[:, 0]
        return scores, replace(state, cache=cache)


@partial(jax.jit, donate_argnames="tables")
def fill_tables(
    slot: Int32[Array, ""],
    in_prompt: Bool[Array, "V"],
    logit_bias: Float32[Array, "V"],
    *,
    tables: SlotTables,
) -> SlotTables:
    """The slot begins anew."""
    return SlotTables(
        in_prompt=tables.in_prompt.at[slot].set(in_prompt),
        counts=tables.counts.at[slot].set(0),
        logit_bias=tables.logit_bias.at[slot].set(logit_bias),
    )


@partial(jax.jit, static_argnames="form", donate_argnames="cache")
def copy_row(
    source: Int32[Array, ""], target: Int32[Array, ""], *, cache: Cache, form: SlotForm
) -> Cache:
    """The whole row of a slot over that of another: what lies behind a prefix is overwritten."""

    def copied(array: Array) -> Array:
        row = jax.lax.dynamic_index_in_dim(array, source, 0)
        return jax.lax.dynamic_update_slice_in_dim(array, row, target, 0)

    moved: Cache = jax.tree.map(copied, cache)
    return form.kept(moved)


def choose(
    scores: Float32[Array, "R V"],
    rows: RowInputs,
    masks: Masks,
    tables: SlotTables | None,
    num_chosen: Int32[Array, "R"],
    form: SlotForm,
) -> tuple[Choices, SlotTables | None]:
    """One id per row, and the tables with it."""
    bias, sampling = None, SamplingState(positions=num_chosen, in_prompt=None, counts=None)
    slots = rows.column("slot")
    if tables is not None:
        at = jnp.where(slots < 0, tables.counts.shape[0] - 1, slots)
        own = jnp.where(rows.column("has_bias")[:, None] != 0, tables.logit_bias[at], 0)
        bias = own if masks.permitted is None else jnp.where(masks.permitted, own, -jnp.inf)
        sampling = replace(sampling, in_prompt=tables.in_prompt[at], counts=tables.counts[at])
    choices, _ = choose_rows(
        scores,
        rows.sampling(masks.allowed, bias),
        sampling,
        transforms=PLAIN if tables is None else FULL,
        num_alternatives=form.num_alternatives,
        is_native=form.is_native,
    )
    if tables is not None:
        tables = replace(tables, counts=tables.counts.at[at, choices.ids].add(1))
    return choices, tables


def _logits_at(
    params: DecoderParams, x: Float[Array, "1 T D"], token: Int32[Array, ""], form: SlotForm
) -> Float[Array, "1 V"]:
    end = jax.lax.dynamic_slice_in_dim(x, token, 1, axis=1)
    found: Array = form.logits(params, end)[:, 0]
    return found


def _extend_one(
    params: DecoderParams,
    ids: Int32[Array, "1 T"],
    place: Int32[Array, "3"],
    cache: SlotsCache,
    form: SlotForm,
) -> tuple[Float[Array, "1 T D"], SlotsCache]:
    slot, starts = place[0], place[1:2]
    if not isinstance(cache, Cache):
        rows = SlotRows(cache=cache, slots=place[:1])
        return extend_slots(params, ids, starts, rows, config=form.config), cache
    own = jax.tree.map(lambda array: jax.lax.dynamic_index_in_dim(array, slot, 0), cache)
    x, own = extend(params, ids, starts, own, config=form.config)
    cache = jax.tree.map(
        lambda array, row: jax.lax.dynamic_update_slice_in_dim(array, row, slot, 0), cache, own
    )
    return x, form.kept(cache)


def _extend_rows(
    params: DecoderParams,
    rows: RowInputs,
    now: tuple[Int32[Array, "R"], Int32[Array, "R"]],
    cache: SlotsCache,
    form: SlotForm,
) -> tuple[Float[Array, "R 1 D"], SlotsCache]:
    slots, (tokens, lengths) = rows.column("slot"), now
    if not isinstance(cache, Cache):
        kept = SlotRows(cache=cache, slots=slots)
        return extend_slots(params, tokens[:, None], lengths, kept, config=form.config), cache
    # All rows take part. A blank one writes where no sequence that goes on has anything: a prompt
    # may fill the last position, but nobody reads it behind the chunk that wrote it.
    capacity = cache.layers[0].key.shape[2]
    places = jnp.where(slots < 0, capacity - 1, jnp.minimum(lengths, capacity - 1))
    x, cache = extend(params, tokens[:, None], places, cache, config=form.config)
    return x, form.kept(cache)
