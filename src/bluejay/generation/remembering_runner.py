"""Logits behind ids of which most were asked before, as while somebody types.

Every letter asks for the same head of the text, and for many of the same continuations. So logits
are remembered, and the keys and values of the ids before them in rows of one cache.

Axes: V vocabulary
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from bluejay.core.errors import UsageError
from bluejay.generation.prompt_chunks import CHUNK_SIZES
from bluejay.generation.pulse import Pulse
from bluejay.generation.remembered_rows import OwnedIds, RememberedRows
from bluejay.generation.runner import Runner, require_ids
from bluejay.generation.sampling_params import SamplingParams
from bluejay.generation.slot_programs import SlotForm, SlotState, peek_rows, run_chunk
from bluejay.generation.slot_rows import SlotRow, fixed_numbers, padded_ids, row_inputs
from bluejay.kernels.decoding import ResidentBlocks
from bluejay.model.cache import cache_capacity
from bluejay.model.cached_block import keep_cache
from bluejay.model.config import DecoderConfig

# Steps of one call: some rows of a small model take little longer than one, since its weights are
# read once. More of them where there are rows enough.
MOST_AT_ONCE: Final = 4
_MOST_TOGETHER: Final = 8
# So many may well ask together where there are rows for it.
_MOST_ASKING: Final = 4
# Twice as many for steps, and some for prompts.
FEWEST_ROWS: Final = 2 * MOST_AT_ONCE + 2
# Of one remembered id of the vocabulary: a logit, and what whoever asks makes of it.
_REMEMBERED_BYTES: Final = 4 + 8


@dataclass(kw_only=True, eq=False)
class RememberedPrefix:
    """Ids and the raw logits [V] behind them; it holds no row. `probabilities` is for whoever asks
    to keep what he makes of the logits."""

    ids: OwnedIds
    logits: NDArray[np.float32]
    probabilities: NDArray[np.float64] | None = None


class RememberingRunner:
    """A runner's decoder that reads texts of up to `context_length` tokens, with the same bits.

    Only where `can_remember`. Remembers up to `most_bytes` of logits and probabilities. Owners
    share the bounds but nothing that was computed. Threads may call it, one works at a time.
    """

    def __init__(
        self, runner: Runner, *, context_length: int, num_rows: int, most_bytes: int
    ) -> None:
        assert can_remember(runner)
        assert num_rows >= FEWEST_ROWS
        self.runner, self.num_calls, self.pulse = runner, 0, Pulse()
        self.config: DecoderConfig = replace(runner.config, context_length=context_length)
        # Shared with an engine's programs, whose configuration is the decoder's own.
        self._form = SlotForm(config=runner.config, is_native=runner.is_native)
        self._capacity = cache_capacity(context_length)
        self._kept = keep_cache(
            runner.config,
            rows=num_rows,
            capacity=self._capacity,
            dtype=runner.cache_dtype,
            is_sparse=True,
        )
        self._number: Any = self._kept.number  # NumPy's: JAX takes it faster than it makes one
        num_loose = max(2 * MOST_AT_ONCE, num_rows // 2)
        self._rows = RememberedRows(num_rows, num_loose=num_loose)
        self._fixed = fixed_numbers(SamplingParams())
        self._known: OrderedDict[OwnedIds, RememberedPrefix] = OrderedDict()
        one = _REMEMBERED_BYTES * self.config.vocab_size
        self._most_known = max(MOST_AT_ONCE, most_bytes // one)
        # Numbers of rows that programs have.
        self._sizes = [1, MOST_AT_ONCE]
        if num_loose >= 2 * _MOST_TOGETHER and self._most_known >= 2 * _MOST_TOGETHER:
            self._sizes.append(_MOST_TOGETHER)
        self.reads_at_once = self._sizes[-1]
        self.num_at_once = _MOST_ASKING if self.reads_at_once > MOST_AT_ONCE else 1
        self._lock = threading.Lock()

    def of_tenant(self, tenant: str) -> "TenantRunner":
        """What one tenant asks, who shares no memory with others."""
        return TenantRunner(self, tenant)

    def after(
        self, prompts: Sequence[OwnedIds], steps: Sequence[Sequence[OwnedIds]]
    ) -> list[RememberedPrefix]:
        """The logits behind prompts, and behind the first of each of these steps; all fit the
        context. The other steps are likely to be asked next: where a call is needed, it runs for
        as many of them as there is room for."""
        firsts = [*prompts, *(wanted[0] for wanted in steps)]
        guesses = [ids for wanted in steps for ids in wanted[1:]]
        found: list[RememberedPrefix] = []
        with self._lock, self.pulse.piece():
            for number, ids in enumerate(firsts, start=1):
                if ids not in self._known:
                    others = [*firsts[number:], *guesses]
                    self._take_steps(ids, others, firm=frozenset(prompts))
                # At once: the next call may take its place.
                found.append(self._recalled(ids))
        return found

    def recalled(self, ids: OwnedIds) -> RememberedPrefix | None:
        """What `after` gives of them if no call is needed."""
        with self._lock:
            return self._recalled(ids) if ids in self._known else None

    def require_room(self, length: int) -> None:
        """UsageError for more tokens than the context has."""
        if length > self.config.context_length:
            raise UsageError(
                f"{length} tokens exceed the context of {self.config.context_length} tokens:"
                " shorten the text."
            )

    def warm_up(self) -> None:
        """Run all programs once. An engine of the same decoder has the same ones."""
        longest = self.config.context_length
        with self._lock:
            for size in (*(size for size in CHUNK_SIZES if size <= longest), 1):
                self._run_pieces((0,) * size, row=0, pieces=[(0, size)])
            for size in self._sizes[1:]:
                self._run_steps([self._step_row(0, row=row, begin=0) for row in range(size)])

    def _recalled(self, ids: OwnedIds) -> RememberedPrefix:
        self._known.move_to_end(ids)
        return self._known[ids]

    def _remember(self, ids: OwnedIds, logits: NDArray[np.float32]) -> None:
        self._known[ids] = RememberedPrefix(ids=ids, logits=logits)
        if len(self._known) > self._most_known:
            self._known.popitem(last=False)

    def _read(self, wanted: OwnedIds) -> tuple[int, NDArray[np.float32]]:
        """A row that holds the ids, and the logits behind them."""
        source, done = self._rows.nearest(wanted)
        row = self._rows.take(is_loose=False)
        if done and row != source:
            self._kept.copy(source, row, done)
        pieces = wanted.left(done, capacity=self._capacity)
        logits = self._run_pieces(wanted.ids, row=row, pieces=pieces)
        self._rows.hold(row, wanted)
        return row, logits

    def _take_steps(
        self, first: OwnedIds, others: Sequence[OwnedIds], *, firm: frozenset[OwnedIds]
    ) -> None:
        """Run the first of these for certain, and others as long as there is room in the call; the
        `firm` ones are prompts."""
        if self._source(first, firm) is None:
            before = first if first in firm else first.before_step
            self._remember(before, self._read(before)[1])
            if before is first:
                return
        wanted = OrderedDict.fromkeys([first, *others])
        places = [
            (ids, source)
            for ids in wanted
            if ids not in self._known and (source := self._source(ids, firm)) is not None
        ][: self._sizes[-1]]
        # From now on no row that is copied is given away: there are twice as many.
        rows = []
        for ids, source in places:
            row = self._rows.take(is_loose=ids not in firm)
            self._kept.copy(source, row, len(ids.ids) - 1)
            rows.append(self._step_row(ids.ids[-1], row=row, begin=len(ids.ids) - 1))
        found = self._run_steps(rows)
        for (ids, _), step, logits in zip(places, rows, found, strict=True):
            self._rows.hold(step.slot, ids)
            # A copy: the others may be forgotten sooner.
            self._remember(ids, logits.copy())

    def _source(self, ids: OwnedIds, firm: frozenset[OwnedIds]) -> int | None:
        """A row, now the last used, that holds all of these but the last id."""
        if ids not in firm:
            return self._rows.row_of(ids.before_step)
        if len(ids.ids) == ids.wide:  # the last one has the bits of its chunk
            return None
        row, shared = self._rows.nearest(ids)
        return row if shared >= len(ids.ids) - 1 > 0 else None

    def _step_row(self, token: int, *, row: int, begin: int) -> SlotRow:
        return SlotRow(slot=row, token=token, length=begin, fixed=self._fixed)

    def _run_steps(self, rows: Sequence[SlotRow]) -> NDArray[np.float32]:
        """Logits [R, V]."""
        found, _ = self._peek(rows, SlotState(cache=self._number))
        logits: NDArray[np.float32] = np.asarray(found)[: len(rows)]
        return logits

    def _peek(self, rows: Sequence[SlotRow], state: SlotState) -> tuple[Array, SlotState]:
        self.num_calls += 1
        size = next(size for size in self._sizes if size >= len(rows))
        inputs = row_inputs(rows, size=size, places=range(len(rows)))
        found: tuple[Array, SlotState] = peek_rows(
            self.runner.operands, inputs, state=state, form=self._form
        )
        return found

    def _run_pieces(
        self, ids: Sequence[int], *, row: int, pieces: Sequence[tuple[int, int]]
    ) -> NDArray[np.float32]:
        """Logits behind the last of the ids, of which these pieces are run."""
        found: Any = None
        # What a program returns makes the next wait for it.
        state = SlotState(cache=self._number)
        for begin, size in pieces:
            piece = ids[begin : begin + size]
            if size == 1:
                row_now = self._step_row(piece[0], row=row, begin=begin)
                found, state = self._peek([row_now], state)
            else:
                found, state = self._chunk(piece, (row, begin, len(piece) - 1), size, state)
        # Waits for the end: from now on the rows may be copied.
        logits: NDArray[np.float32] = np.asarray(found)[0]
        return logits

    def _chunk(
        self, ids: Sequence[int], place: tuple[int, int, int], size: int, state: SlotState
    ) -> tuple[Array, SlotState]:
        self.num_calls += 1
        padded = padded_ids([ids], size)
        found: tuple[Array, SlotState] = run_chunk(
            self.runner.operands, padded, np.array(place, np.int32), state=state, form=self._form
        )
        return found


class TenantRunner:
    """What one tenant asks. Implements `text.next_tokens.NextTokens` and `SeveralAtOnce`."""

    def __init__(self, shared: RememberingRunner, tenant: str) -> None:
        self._shared, self._tenant = shared, tenant
        self.config, self.reads_at_once = shared.config, shared.reads_at_once

    def start(self, ids: Sequence[int], *, reserve: int = 0) -> RememberedPrefix:
        """As `Runner.start`, for the logits."""
        return self._shared.after([self.prompt(ids, reserve)], [])[0]

    def branch(self, prefix: RememberedPrefix, token: int) -> RememberedPrefix:
        """As `Runner.branch`, for the logits."""
        return self.branch_first([(prefix, token)])

    def branch_first(self, wanted: Sequence[tuple[RememberedPrefix, int]]) -> RememberedPrefix:
        """`branch` of the first; the others, the likeliest to be asked next, may run with it."""
        return self._shared.after([], [self.steps(wanted)])[0]

    def prompt(self, ids: Sequence[int], reserve: int) -> OwnedIds:
        """The ids of `start`, which are looked at."""
        self._shared.runner.require_fit(ids, reserve)
        self._shared.require_room(len(ids) + reserve)
        return OwnedIds.of_prompt(self._tenant, ids)

    def steps(self, wanted: Sequence[tuple[RememberedPrefix, int]]) -> list[OwnedIds]:
        """The ids of `branch_first`, which are looked at."""
        wanted = wanted[: self.reads_at_once]
        require_ids([token for _, token in wanted], self.config)
        self._shared.require_room(max(len(prefix.ids.ids) for prefix, _ in wanted) + 1)
        return [prefix.ids.followed_by(token) for prefix, token in wanted]


def can_remember(runner: Runner) -> bool:
    """Whether kernels keep the cache, and give a position the same bits in chunks and steps."""
    return runner.repeats_positions and isinstance(runner.operands.blocks, ResidentBlocks)
