"""Logits behind ids of which most were asked before, as while somebody types.

Every letter asks for the same head of the text, and for many of the same continuations. So logits
are remembered, and the keys and values of the ids before them in rows of one cache.

Axes: V vocabulary
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Array
from numpy.typing import NDArray

from bluejay.core.errors import UsageError
from bluejay.generation.prompt_chunks import CHUNK_SIZES
from bluejay.generation.remembered_rows import OwnedIds, RememberedRows
from bluejay.generation.runner import Runner, require_ids
from bluejay.generation.sampling_params import SamplingParams
from bluejay.generation.slot_programs import SlotForm, SlotState, peek_rows, run_chunk
from bluejay.generation.slot_rows import RowInputs, SlotRow, fixed_numbers, packed_rows
from bluejay.kernels.decoding import ResidentBlocks
from bluejay.kernels.slot_cache import SlotCache
from bluejay.model.config import DecoderConfig
from bluejay.nn.attention import CACHE_BLOCK


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
        self.runner, self.num_calls = runner, 0
        self.config: DecoderConfig = replace(runner.config, context_length=context_length)
        # Shared with an engine's programs, whose configuration is the decoder's own.
        self._form = SlotForm(config=runner.config, is_native=runner.is_native)
        self._kept = _new_cache(runner, rows=num_rows, context_length=context_length)
        self._number: Any = self._kept.number  # NumPy's: JAX takes it faster than it makes one
        self._rows = RememberedRows(num_rows)
        self._fixed = fixed_numbers(SamplingParams())
        self._logits: OrderedDict[OwnedIds, NDArray[np.float32]] = OrderedDict()
        self._most_logits = max(1, most_bytes // (4 * self.config.vocab_size))
        self._lock = threading.Lock()

    def of_tenant(self, tenant: str) -> "TenantRunner":
        """What one tenant asks, who shares no memory with others."""
        return TenantRunner(self, tenant)

    def after(self, wanted: OwnedIds) -> RememberedPrefix:
        """The logits behind the ids, which must fit the context."""
        with self._lock:
            found = self._logits.get(wanted)
            if found is None:
                found = self._logits[wanted] = self._run(wanted)
                if len(self._logits) > self._most_logits:
                    self._logits.popitem(last=False)
            self._logits.move_to_end(wanted)
        return RememberedPrefix(ids=wanted, logits=found)

    def warm_up(self) -> None:
        """Run all programs once. An engine of the same decoder has the same ones."""
        sizes = [size for size in CHUNK_SIZES if size <= self.config.context_length]
        with self._lock:
            for size in (*sizes, 1):
                self._run_pieces((0,) * size, row=0, pieces=[(0, size)])
            self._rows.forget()

    def _run(self, wanted: OwnedIds) -> NDArray[np.float32]:
        source, done = self._rows.nearest(wanted)
        row = self._rows.take()
        if done and row != source:
            self._kept.copy(source, row, done)
        logits = self._run_pieces(wanted.ids, row=row, pieces=wanted.left(done))
        self._rows.hold(row, wanted)
        return logits

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
                found, state = self._step(piece[0], row=row, begin=begin, state=state)
            else:
                found, state = self._chunk(piece, (row, begin, len(piece) - 1), size, state)
            self.num_calls += 1
        # Waits for the end: from now on the rows may be copied.
        logits: NDArray[np.float32] = np.asarray(found)[0]
        return logits

    def _step(
        self, token: int, *, row: int, begin: int, state: SlotState
    ) -> tuple[Array, SlotState]:
        step = SlotRow(slot=row, token=token, length=begin, fixed=self._fixed)
        packed: Any = packed_rows([step], size=1, places=[0])
        found: tuple[Array, SlotState] = peek_rows(
            self.runner.operands, RowInputs(packed), state=state, form=self._form
        )
        return found

    def _chunk(
        self, ids: Sequence[int], place: tuple[int, int, int], size: int, state: SlotState
    ) -> tuple[Array, SlotState]:
        padded = np.zeros((1, size), np.int32)
        padded[0, : len(ids)] = ids
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
        return self._shared.after(OwnedIds.of_prompt(self._tenant, ids))

    def branch(self, prefix: RememberedPrefix, token: int) -> RememberedPrefix:
        """As `Runner.branch`, for the logits."""
        require_ids([token], self.config)
        self._require_room(len(prefix.ids.ids) + 1)
        return self._shared.after(prefix.ids.followed_by(token))

    def _require_room(self, length: int) -> None:
        if length > self.config.context_length:
            raise UsageError(
                f"{length} tokens exceed the context of {self.config.context_length} tokens:"
                " shorten the text."
            )


def can_remember(runner: Runner) -> bool:
    """Whether kernels keep the cache, and give a position the same bits in chunks and steps."""
    return runner.repeats_positions and isinstance(runner.operands.blocks, ResidentBlocks)


def row_capacity(context_length: int) -> int:
    """Positions of a row: the last chunk, which may begin anywhere, reaches beyond the ids."""
    return -(-(context_length + CHUNK_SIZES[-1]) // CACHE_BLOCK) * CACHE_BLOCK


def _new_cache(runner: Runner, *, rows: int, context_length: int) -> SlotCache:
    config = runner.config
    return SlotCache(
        layers=config.num_layers,
        rows=rows,
        heads=(config.num_kv_heads, row_capacity(context_length), config.head_dim),
        dtype=runner.cache_dtype,
    )
