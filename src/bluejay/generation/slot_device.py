"""A decoder with one cache for many sequences, and what can be done with its rows.

Axes: R rows of a call  V vocabulary  T tokens of a chunk
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial, wraps
from typing import Any, Final, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32
from numpy.typing import NDArray

from bluejay.core.errors import UsageError
from bluejay.generation.device_arrays import is_there, on_device
from bluejay.generation.runner import Runner
from bluejay.generation.scheduled_steps import PrefillChunk
from bluejay.generation.slot_check import check_row
from bluejay.generation.slot_programs import (
    MOST_ALTERNATIVES,
    Masks,
    SlotForm,
    SlotsCache,
    SlotState,
    SlotTables,
    choose_first,
    copy_row,
    decode_rows,
    fill_tables,
    peek_rows,
    run_chunk,
    score_chunk,
)
from bluejay.generation.slot_rows import (
    HostChoices,
    SlotRow,
    padded_ids,
    row_inputs,
    unpacked_choices,
)
from bluejay.generation.step_mail import Hear, StepMail, mail_size
from bluejay.kernels.decoding import ResidentBlocks
from bluejay.mesh.programs import in_order, whole_on
from bluejay.model.cache import Cache, cache_capacity
from bluejay.model.cached_block import keep_cache, keep_params
from bluejay.model.params import DecoderParams
from bluejay.nn.quantized import QuantizedWeight

# Of a call over weights that are not packed (`multiply_weights`).
MOST_DENSE_ROWS: Final = 16


class CallForm(NamedTuple):
    """Which program a choice is made by: any of them makes the same, if it can make it at all.

    `is_full` rows may have penalties, a bias or a constraint.
    """

    is_full: bool = False
    has_alternatives: bool = False


class Lost(NamedTuple):
    """What a failed call took with it: what all slots held, or what penalties need to know."""

    cache: bool
    tables: bool


Method = TypeVar("Method", bound=Callable[..., Any])


def _in_order(method: Method) -> Method:
    """Runs programs: over a mesh, no other thread's come between."""

    @wraps(method)
    def run(self: "SlotDevice", *arguments: Any, **named: Any) -> Any:
        with in_order(self.mesh):
            return method(self, *arguments, **named)

    return cast(Method, run)


class SlotDevice:
    """Runs one decoder over `num_slots` sequences of up to `context_length` tokens.

    `allowed` [V] tells which ids may be chosen at all. `adapters` are further parameters of the
    same shapes by name; None names the runner's own. Used by one thread at a time, which calls
    `meanwhile` whenever the device has begun to work and before it waits for the end, and `pause`
    for the seconds in which nobody has use for a step that was taken; over a mesh, other threads
    may run other programs there.
    """

    def __init__(
        self,
        runner: Runner,
        *,
        allowed: NDArray[np.bool_],
        num_slots: int,
        context_length: int,
        adapters: Mapping[str, DecoderParams] | None = None,
    ) -> None:
        self.config, self.num_slots = runner.config, num_slots
        self.capacity = cache_capacity(context_length)
        self.meanwhile: Callable[[], None] = lambda: None
        self.pause: Callable[[], float] = lambda: 0.0
        self._cache_dtype = runner.cache_dtype
        self.is_kept = isinstance(runner.operands.blocks, ResidentBlocks)
        # Whether a call tells of each step when it is taken, and ends where it is halted.
        self.hears_steps = self.is_kept
        # Whether a position has the bits of a single step in a pass over several.
        self.checks_drafts = self.is_kept and runner.repeats_positions
        self._operands: dict[str | None, DecoderParams] = {None: runner.operands}
        for name, params in (adapters or {}).items():
            kept = keep_params(params, config=self.config) if self.is_kept else params
            self._operands[name] = kept
        self.mesh = runner.mesh
        self._allowed = on_device(allowed, np.bool_, self.mesh)
        self._forms = [
            SlotForm(
                config=self.config,
                is_native=runner.is_native,
                mesh=runner.mesh,
                num_alternatives=count,
            )
            for count in (0, min(MOST_ALTERNATIVES, self.config.vocab_size))
        ]
        self._kept = (
            keep_cache(
                self.config,
                rows=num_slots,
                capacity=self.capacity,
                dtype=self._cache_dtype,
                mail=mail_size(num_slots, self._forms[1].num_alternatives),
            )
            if self.is_kept
            else None
        )
        self._cache, self._tables = self._new_cache(), self._new_tables()
        # Rows that a call may have: among more, products with dense weights change a row's bits.
        self.most_rows = num_slots
        if self.is_kept and not all(map(_is_packed, [runner.params, *(adapters or {}).values()])):
            self.most_rows = min(num_slots, MOST_DENSE_ROWS)
        most = self.most_rows
        powers = [1 << bits for bits in range(most.bit_length()) if 1 << bits < most]
        # Numbers of rows that programs have. XLA keeps a row's bits in one of them alone.
        self.sizes = (*powers, most) if self.is_kept else (num_slots,)
        self._permits_all = {
            size: on_device(np.ones((size, allowed.size), np.bool_), np.bool_, self.mesh)
            for size in {1, *self.sizes}
        }

    @property
    def adapters(self) -> frozenset[str]:
        """Names of further parameters."""
        return frozenset(name for name in self._operands if name is not None)

    @_in_order
    def prefill(self, step: PrefillChunk) -> Float32[Array, "1 V"]:
        """Run a chunk of a prompt; raw logits behind its last id, left on the device."""
        state = SlotState(cache=self._cache)
        ids = padded_ids([step.ids], step.size)
        params, form = self._params_of(step), self._forms[0]
        found, state = run_chunk(params, ids, _place(step), state=state, form=form)
        self._cache = state.cache
        self.meanwhile()
        logits: Array = found
        logits.block_until_ready()
        return logits

    @_in_order
    def score(self, step: PrefillChunk) -> tuple[Float32[Array, "1 V"], HostChoices]:
        """As `prefill`, of a request's only prompt, with the scores [T, 1] of the id behind each of
        the chunk's; behind the prompt's last they mean nothing."""
        [prompt] = step.request.request.prompts
        end = step.begin + len(step.ids)
        ids = padded_ids([step.ids, prompt[step.begin + 1 : end + 1]], step.size)
        logits, found, state = score_chunk(
            self._params_of(step),
            ids,
            _place(step),
            Masks(self._allowed),
            state=SlotState(cache=self._cache),
            form=self._forms[1],
        )
        self._cache = state.cache
        self.meanwhile()
        return logits, unpacked_choices(found)

    @_in_order
    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first positions of a slot over those of another."""
        if self._kept is not None:
            self._kept.copy(source, target, length)
        else:
            assert isinstance(self._cache, Cache)
            self._cache = copy_row(
                np.int32(source), np.int32(target), cache=self._cache, form=self._forms[0]
            )

    @_in_order
    def fill(self, slot: int, prompt: Sequence[int], logit_bias: Mapping[int, float]) -> None:
        """A sample begins in the slot that needs full calls."""
        in_prompt = np.zeros(self.config.vocab_size, np.bool_)
        in_prompt[list(prompt)] = True
        bias = np.zeros(self.config.vocab_size, np.float32)
        bias[list(logit_bias)] = list(logit_bias.values())
        self._tables = fill_tables(np.int32(slot), in_prompt, bias, tables=self._tables)

    @_in_order
    def choose_first(
        self,
        logits: Array | NDArray[np.float32],
        row: SlotRow,
        form: CallForm,
        *,
        permitted: NDArray[np.bool_] | None = None,
    ) -> HostChoices:
        """An id [1, 1] from logits [1, V]. `permitted` [1, V] narrows what is allowed, in a full
        call."""
        if self.mesh is not None:
            logits = jax.device_put(logits, whole_on(self.mesh))
        found, tables = choose_first(
            logits,
            row_inputs([row], size=1, places=[0]),
            self._masks(form, 1, permitted),
            tables=self._tables if form.is_full else None,
            form=self._forms[form.has_alternatives],
        )
        if tables is not None:
            self._tables = tables
        return unpacked_choices(found)

    @_in_order
    def decode(
        self,
        rows: Sequence[SlotRow],
        form: CallForm,
        *,
        num_steps: int,
        hear: Hear,
        adapter: str | None = None,
        permitted: NDArray[np.bool_] | None = None,
    ) -> int:
        """The number of steps that were taken: fewer, if every row ends before or somebody halts.
        At most `most_rows` rows.

        `hear` is called with their choices [steps, R], and whether that is all: while the device
        takes further steps where `hears_steps`, else once. `permitted` [R, V] narrows what is
        allowed, in a full call of one step.
        """
        size, places = self._places(rows)
        if permitted is not None:
            wider = np.ones((size, permitted.shape[1]), np.bool_)
            wider[places] = permitted
            permitted = wider
        if self._kept is not None:
            self._kept.clear_mail()
        found, state = decode_rows(
            self._operands[adapter],
            row_inputs(rows, size=size, places=places),
            np.int32(num_steps),
            self._masks(form, size, permitted),
            state=SlotState(cache=self._cache, tables=self._tables if form.is_full else None),
            form=self._forms[form.has_alternatives],
        )
        self._take(state)
        self.meanwhile()
        if self._kept is None:
            choices = unpacked_choices(found)
            hear(choices.of_rows(places), True)
            return len(choices.ids)
        mail = StepMail(
            num_rows=len(rows),
            size=size,
            num_alternatives=self._forms[form.has_alternatives].num_alternatives,
        )
        return mail.read(found, self._kept, hear, pause=self.pause)

    @_in_order
    def check(
        self, row: SlotRow, drafted: Sequence[int], *, positions: int, adapter: str | None = None
    ) -> HostChoices:
        """What `decode` of a plain row chooses, as long as it agrees with the draft and once more,
        after one pass over so many positions: at least one more than ids are drafted.

        Where `checks_drafts`. The pass must end within the capacity.
        """
        draft = np.zeros(positions, np.int32)
        draft[: len(drafted)], draft[-1] = drafted, len(drafted)
        found, state = check_row(
            self._operands[adapter],
            row_inputs([row], size=1, places=[0]),
            draft,
            Masks(self._allowed),
            state=SlotState(cache=self._cache),
            form=self._forms[0],
        )
        self._take(state)
        self.meanwhile()
        return unpacked_choices(found)

    @_in_order
    def peek(self, rows: Sequence[SlotRow], *, adapter: str | None = None) -> NDArray[np.float32]:
        """Raw logits [R, V] behind each row's token, which is in the cache then; of any rows."""
        parts = [
            self._peek_part(rows[begin : begin + self.most_rows], adapter)
            for begin in range(0, len(rows), self.most_rows)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def _peek_part(self, rows: Sequence[SlotRow], adapter: str | None) -> NDArray[np.float32]:
        size, places = self._places(rows)
        found, state = peek_rows(
            self._operands[adapter],
            row_inputs(rows, size=size, places=places),
            state=SlotState(cache=self._cache),
            form=self._forms[0],
        )
        self._take(state)
        self.meanwhile()
        scores: NDArray[np.float32] = np.asarray(found)[places]
        return scores

    def halt(self, is_wanted: bool) -> None:
        """Whether a call of several steps is to end with the one it is at, this one and all later
        ones. From any thread; has no effect where the cache is not a kept one."""
        if self._kept is not None:
            self._kept.halt(is_wanted)

    def recover(self) -> Lost:
        """To be called when a call failed: makes anew what it took with it."""
        lost_cache = not self.is_kept and not is_there(self._cache)
        lost_tables = not is_there(self._tables)
        if lost_cache or self.is_kept:  # whose number alone may be lost
            self._cache = self._new_cache()
        if lost_tables:
            self._tables = self._new_tables()
        return Lost(lost_cache, lost_tables)

    def _take(self, state: SlotState) -> None:
        self._cache = state.cache
        if state.tables is not None:
            self._tables = state.tables

    def _params_of(self, step: PrefillChunk) -> DecoderParams:
        return self._operands[step.request.request.adapter]

    def _places(self, rows: Sequence[SlotRow]) -> tuple[int, list[int]]:
        """The number of rows of a call for these, and where each of them stands in it."""
        if not self.is_kept:
            return self.num_slots, [row.slot for row in rows]
        size = next(size for size in self.sizes if size >= len(rows))
        return size, list(range(len(rows)))

    def _masks(self, form: CallForm, size: int, permitted: NDArray[np.bool_] | None) -> Masks:
        if not form.is_full:
            assert permitted is None, "plain calls have one mask for all"
            return Masks(self._allowed)
        if permitted is None:
            return Masks(self._allowed, self._permits_all[size])
        return Masks(self._allowed, on_device(permitted, np.bool_, self.mesh))

    def _new_cache(self) -> SlotsCache:
        if self._kept is not None:
            return on_device(self._kept.number, np.int32)
        return self._forms[0].empty_cache(self.num_slots, self.capacity, self._cache_dtype)

    def _new_tables(self) -> SlotTables:
        shape = (self.num_slots + 1, self.config.vocab_size)
        zeros = partial(jnp.zeros, shape, device=None if self.mesh is None else whole_on(self.mesh))
        return SlotTables(
            in_prompt=zeros(dtype=jnp.bool_),
            counts=zeros(dtype=jnp.int32),
            logit_bias=zeros(dtype=jnp.float32),
        )


def require_context(context_length: int, runner: Runner) -> None:
    """Raise UsageError for a context longer than the model's."""
    if context_length > runner.config.context_length:
        raise UsageError(
            f"A context of {context_length} tokens exceeds the model's"
            f" {runner.config.context_length}: start with a smaller --context."
        )


def _place(step: PrefillChunk) -> NDArray[np.int32]:
    return np.array([step.slot, step.begin, len(step.ids) - 1], np.int32)


def _is_packed(params: DecoderParams) -> bool:
    """Whether all weights that rows are multiplied with are codes."""
    head = params.embedding if params.head is None else params.head
    leaves = jax.tree.leaves(
        (params.blocks, head), is_leaf=lambda leaf: isinstance(leaf, QuantizedWeight)
    )
    return all(isinstance(leaf, QuantizedWeight) or leaf.ndim < 2 for leaf in leaves)
