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

# Steps of one call: four rows of a small model take little longer than one, since its weights are
# read once.
MOST_AT_ONCE: Final = 4
# Twice as many for steps, and some for prompts.
FEWEST_ROWS: Final = 2 * MOST_AT_ONCE + 2


@dataclass(frozen=True, kw_only=True)
class RememberedPrefix:
    """Ids and the raw logits [V] behind them; it holds no row."""

    ids: OwnedIds
    logits: NDArray[np.float32]


class RememberingRunner:
    """A runner's decoder that reads texts of up to `context_length` tokens, with the same bits.

    Only where `can_remember`. Remembers up to `most_bytes` of logits. Owners share the bounds but
    nothing that was computed. Threads may call it, one works at a time.
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
            runner.config, rows=num_rows, capacity=self._capacity, dtype=runner.cache_dtype
        )
        self._number: Any = self._kept.number  # NumPy's: JAX takes it faster than it makes one
        num_loose = max(2 * MOST_AT_ONCE, num_rows // 3)
        self._rows = RememberedRows(num_rows, num_loose=num_loose)
        self._fixed = fixed_numbers(SamplingParams())
        self._logits: OrderedDict[OwnedIds, NDArray[np.float32]] = OrderedDict()
        self._most_logits = max(MOST_AT_ONCE, most_bytes // (4 * self.config.vocab_size))
        self._lock = threading.Lock()

    def of_tenant(self, tenant: str) -> "TenantRunner":
        """What one tenant asks, who shares no memory with others."""
        return TenantRunner(self, tenant)

    def after_prompt(self, wanted: OwnedIds) -> RememberedPrefix:
        """The logits behind a prompt that fits the context."""
        with self._lock, self.pulse.piece():
            if wanted not in self._logits:
                self._remember(wanted, self._read(wanted)[1])
            return self._recalled(wanted)

    def after_steps(self, wanted: Sequence[OwnedIds]) -> RememberedPrefix:
        """The logits behind the first of these; if a call is needed for it, it runs for the others
        too. The last id of each is a step that fits the context. At most MOST_AT_ONCE."""
        with self._lock, self.pulse.piece():
            if wanted[0] not in self._logits:
                self._take_steps([ids for ids in wanted if ids not in self._logits])
            return self._recalled(wanted[0])

    def warm_up(self) -> None:
        """Run all programs once. An engine of the same decoder has the same ones."""
        longest = self.config.context_length
        with self._lock:
            for size in (*(size for size in CHUNK_SIZES if size <= longest), 1):
                self._run_pieces((0,) * size, row=0, pieces=[(0, size)])
            self._run_steps([self._step_row(0, row=row, begin=0) for row in range(MOST_AT_ONCE)])

    def _recalled(self, ids: OwnedIds) -> RememberedPrefix:
        self._logits.move_to_end(ids)
        return RememberedPrefix(ids=ids, logits=self._logits[ids])

    def _remember(self, ids: OwnedIds, logits: NDArray[np.float32]) -> None:
        self._logits[ids] = logits
        if len(self._logits) > self._most_logits:
            self._logits.popitem(last=False)

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

    def _take_steps(self, wanted: Sequence[OwnedIds]) -> None:
        places = []
        for ids in wanted:
            before = ids.before_step
            source = self._rows.row_of(before)
            if source is None and ids is wanted[0]:
                source, _ = self._read(before)
            if source is not None:  # of guesses, only those that take no call of their own
                places.append((ids, source))
        # From now on no row that is copied is given away: there are twice as many loose ones.
        rows = []
        for ids, source in places:
            row = self._rows.take(is_loose=True)
            self._kept.copy(source, row, len(ids.ids) - 1)
            rows.append(self._step_row(ids.ids[-1], row=row, begin=len(ids.ids) - 1))
        found = self._run_steps(rows)
        for (ids, _), step, logits in zip(places, rows, found, strict=True):
            self._rows.hold(step.slot, ids)
            # A copy: the others may be forgotten sooner.
            self._remember(ids, logits.copy())

    def _step_row(self, token: int, *, row: int, begin: int) -> SlotRow:
        return SlotRow(slot=row, token=token, length=begin, fixed=self._fixed)

    def _run_steps(self, rows: Sequence[SlotRow]) -> NDArray[np.float32]:
        """Logits [R, V]."""
        found, _ = self._peek(rows, SlotState(cache=self._number))
        logits: NDArray[np.float32] = np.asarray(found)[: len(rows)]
        return logits

    def _peek(self, rows: Sequence[SlotRow], state: SlotState) -> tuple[Array, SlotState]:
        self.num_calls += 1
        # Two programs, of one row and of the most.
        size = 1 if len(rows) == 1 else MOST_AT_ONCE
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
    """What one tenant asks. Implements `text.word_search.NextTokens`."""

    def __init__(self, shared: RememberingRunner, tenant: str) -> None:
        self._shared, self._tenant = shared, tenant
        self.config = shared.config

    def start(self, ids: Sequence[int], *, reserve: int = 0) -> RememberedPrefix:
        """As `Runner.start`, for the logits."""
        self._shared.runner.require_fit(ids, reserve)
        self._require_room(len(ids) + reserve)
        return self._shared.after_prompt(OwnedIds.of_prompt(self._tenant, ids))

    def branch(self, prefix: RememberedPrefix, token: int) -> RememberedPrefix:
        """As `Runner.branch`, for the logits."""
        return self.branch_first([(prefix, token)])

    def branch_first(self, wanted: Sequence[tuple[RememberedPrefix, int]]) -> RememberedPrefix:
        """`branch` of the first; the others, the likeliest to be asked next, may run with it."""
        steps = wanted[:MOST_AT_ONCE]
        require_ids([token for _, token in steps], self.config)
        self._require_room(max(len(prefix.ids.ids) for prefix, _ in steps) + 1)
        return self._shared.after_steps([prefix.ids.followed_by(token) for prefix, token in steps])

    def _require_room(self, length: int) -> None:
        if length > self.config.context_length:
            raise UsageError(
                f"{length} tokens exceed the context of {self.config.context_length} tokens:"
                " shorten the text."
            )


def can_remember(runner: Runner) -> bool:
    """Whether kernels keep the cache, and give a position the same bits in chunks and steps."""
    return runner.repeats_positions and isinstance(runner.operands.blocks, ResidentBlocks)
