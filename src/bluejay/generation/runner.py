"""A decoder on the device with its compiled programs: prefill in chunks, decode by single tokens.

Every program has a static shape, and which programs a row passes through follows from its own
length alone. So a row's result has the same bits whatever runs beside it (docs/decisions/0005).

Axes: R rows of one call  T tokens of one chunk  V vocabulary  D embed
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from bluejay.core.errors import UsageError
from bluejay.generation.device_arrays import on_device, padded
from bluejay.generation.program_form import ProgramForm
from bluejay.generation.prompt_chunks import (
    SMALLEST_CAPACITY,
    capacity_for,
    chunks,
    padded_length,
)
from bluejay.generation.speculation_length import PassTimes
from bluejay.kernels.decoding import DENSE_DTYPES, native_decoding
from bluejay.kernels.library import cpu_library
from bluejay.mesh.programs import in_order, mesh_of
from bluejay.model.cache import Cache
from bluejay.model.cached_block import decodes_block_natively, keep_params
from bluejay.model.config import DecoderConfig
from bluejay.model.decoder import extend
from bluejay.model.params import DecoderParams
from bluejay.nn.quantized import QuantizedWeight, take_rows


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """One sequence on the device, ready for its next token.

    `logits` are raw: [V] float32, of the token that follows, ids without a token included.
    """

    length: int
    capacity: int
    cache: Cache
    logits: Array


@dataclass(frozen=True, kw_only=True)
class RowGroup:
    """R sequences that step together; `logits` [R, V] as in Prefix."""

    lengths: tuple[int, ...]
    cache: Cache
    logits: Array


class Runner:
    """Runs one decoder. `rows_per_call` is the static number of rows in a batched step."""

    def __init__(
        self,
        params: DecoderParams,
        *,
        config: DecoderConfig,
        rows_per_call: int | None = None,
        cache_dtype: DTypeLike = jnp.float32,
    ) -> None:
        self.config = config
        # Kernels see arrays of one device; a mesh's go through XLA.
        self.is_native = cpu_library() is not None and all(
            len(leaf.devices()) == 1 for leaf in jax.tree.leaves(params)
        )
        self.rows_per_call = rows_per_call or _default_rows_per_call(self.is_native)
        self.cache_dtype = jnp.dtype(cache_dtype).name
        self.params = params
        # What passes of this runner took, by the form of the loop: see `speculation_length`.
        self.pass_times: dict[object, PassTimes] = {}
        self.mesh = mesh_of(params)
        self.form = ProgramForm(config=config, is_native=self.is_native, mesh=self.mesh)
        chunk = partial(_run_chunk, form=self.form)
        self._chunk = jax.jit(chunk, donate_argnames="cache")
        self._chunk_of_copy = jax.jit(chunk)
        score_chunk = partial(_score_chunk, form=self.form)
        self._score_chunk = jax.jit(score_chunk, donate_argnames="cache")

    @property
    def params(self) -> DecoderParams:
        """The decoder's own; its programs take `operands`."""
        return self._params

    @params.setter
    def params(self, params: DecoderParams) -> None:
        self._params = params
        self._operands: DecoderParams | None = None

    @property
    def operands(self) -> DecoderParams:
        """The parameters as programs take them: with numbers of blocks that the kernels keep,
        where they know all of them."""
        if self._operands is None:
            self._operands = self._params
            if self._decodes_natively():
                self._operands = keep_params(self._params, config=self.config)
        return self._operands

    def with_rows(self, rows: int) -> "Runner":
        """The same decoder for at least so many rows per call."""
        runner = Runner(
            self.params,
            config=self.config,
            rows_per_call=max(rows, self.rows_per_call),
            cache_dtype=self.cache_dtype,
        )
        runner._operands = self._operands  # blocks are kept once
        return runner

    def warm_up(self, length: int) -> None:
        """Compile what a prompt of that length runs through."""
        for size in {size for _, size in chunks(length)}:
            short = min(size, length)
            self.start([0] * short, reserve=length - short)

    @property
    def num_programs(self) -> int:
        """How many programs of prefill and single steps this runner has compiled."""
        jitted = (self._chunk, self._chunk_of_copy, self._score_chunk)
        return sum(num_compiled(program) for program in jitted)

    @cached_property
    def repeats_positions(self) -> bool:
        """Whether a position has the same bits in a pass over 1 and over up to 16 of them.

        Native kernels promise it for float32 rows (tests/kernels/test_decoder_block.py), XLA does
        not.
        """
        head = self.params.embedding if self.params.head is None else self.params.head
        return self._decodes_natively() and _has_kernel(head)

    def _decodes_natively(self) -> bool:
        """Whether every block has a kernel, for float32 rows and the cache of this runner."""
        if not self.is_native:
            return False
        blocks = self.params.blocks
        assert isinstance(blocks, tuple), "decoding runs over unstacked blocks"
        one_id = jax.ShapeDtypeStruct((1, 1), jnp.int32)
        x = jax.eval_shape(take_rows, self.params.embedding, one_id)
        cache = jax.eval_shape(partial(self._empty, 1, SMALLEST_CAPACITY))
        with native_decoding():
            return all(
                decodes_block_natively(block, x.dtype, layer)
                for block, layer in zip(blocks, cache.layers, strict=True)
            )

    def start(self, ids: Sequence[int], *, reserve: int = 0) -> Prefix:
        """Prefill: run the prompt and leave room for `reserve` more tokens.

        Raises UsageError for an empty prompt, an id without an embedding row, or a prompt that
        with its reserve exceeds the context.
        """
        self.require_fit(ids, reserve)
        capacity = capacity_for(padded_length(len(ids)), len(ids) + reserve)
        cache = self._empty(1, capacity)
        state, cache = self._prefill(ids, cache, start=0)
        return Prefix(length=len(ids), capacity=capacity, cache=cache, logits=state[0])

    def extend(self, prefix: Prefix, ids: Sequence[int]) -> Prefix:
        """Append ids in chunks, which need not give the bits of single steps. Consumes the prefix.

        `length` may be less than the prefix holds: what lies behind it is overwritten. Raises as
        `start` does.
        """
        self.require_fit(ids, prefix.length)
        length = prefix.length + len(ids)
        prefix = self.grow(prefix, reserve=padded_length(len(ids)))
        state, cache = self._prefill(ids, prefix.cache, start=prefix.length)
        return replace(prefix, length=length, cache=cache, logits=state[0])

    def _prefill(
        self, ids: Sequence[int], cache: Cache, *, start: int
    ) -> tuple[Float[Array, "1 V"], Cache]:
        """Logits of the last of the ids, of which the first stands at `start`, and the cache."""
        state = None
        for begin, size in chunks(len(ids)):
            piece = ids[begin : begin + size]
            at, last = (on_device([n], np.int32) for n in (start + begin, len(piece) - 1))
            with in_order(self.mesh):
                state, cache = self._chunk(
                    self.operands, padded(piece, size), at, last, cache=cache
                )
        assert state is not None
        return state, cache

    def step(self, prefix: Prefix, token: int) -> Prefix:
        """Append one id. Consumes the prefix: its cache is reused in place."""
        return self._append(self._chunk, prefix, token)

    def branch(self, prefix: Prefix, token: int) -> Prefix:
        """Append one id to a copy; the prefix stays usable."""
        return self._append(self._chunk_of_copy, prefix, token)

    def copy(self, prefix: Prefix) -> Prefix:
        """The same prefix with arrays of its own."""
        return replace(prefix, cache=jax.tree.map(jnp.copy, prefix.cache))

    def score(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Raw logits [len(ids), V] of every position. Raises as `start` does."""
        self.require_fit(ids, 0)
        cache = self._empty(1, capacity_for(padded_length(len(ids)), len(ids)))
        scores = np.empty((len(ids), self.config.vocab_size), np.float32)
        for begin, size in chunks(len(ids)):
            piece = ids[begin : begin + size]
            start = on_device([begin], np.int32)
            ids_here = padded(piece, size)
            with in_order(self.mesh):
                found, cache = self._score_chunk(self.operands, ids_here, start, cache=cache)
            scores[begin : begin + len(piece)] = np.asarray(found)[0, : len(piece)]
        return scores

    def rows_for(self, count: int) -> int:
        """The static number of rows for `count` of them: native kernels give a row the same bits
        in any number, XLA only in one."""
        assert 0 < count <= self.rows_per_call
        if not self.is_native:
            return self.rows_per_call
        return min(self.rows_per_call, 1 << (count - 1).bit_length())

    def group(
        self, prefixes: Sequence[Prefix], *, reserve: int, rows: int | None = None
    ) -> RowGroup:
        """Join at most `rows_per_call` prefixes, with room for `reserve` more tokens each.

        Empty rows fill the group up to `rows`, by default `rows_per_call`. A group of one row
        takes over the arrays of its prefix, which is consumed with it.
        """
        assert 0 < len(prefixes) <= self.rows_per_call
        needed = max(prefix.length for prefix in prefixes) + reserve
        capacity = capacity_for(max(prefix.capacity for prefix in prefixes), needed)
        blank = (rows or self.rows_per_call) - len(prefixes)
        scores = [prefix.logits for prefix in prefixes]
        caches = [_grown(prefix.cache, capacity) for prefix in prefixes]
        if blank:
            caches += [self._empty(1, capacity)] * blank
            scores += [jnp.zeros_like(scores[0])] * blank
        return RowGroup(
            lengths=tuple(prefix.length for prefix in prefixes) + (0,) * blank,
            cache=jax.tree.map(lambda *parts: jnp.concatenate(parts), *caches),
            logits=jnp.stack(scores),
        )

    def step_group(self, group: RowGroup, tokens: Sequence[int | None]) -> RowGroup:
        """Append one id to every row that has one; rows with None stand still.

        Consumes the group. A row's result depends on its own tokens and on `rows_per_call`,
        never on the other rows.
        """
        ids = [[0 if token is None else token] for token in tokens]
        starts, last = on_device(group.lengths, np.int32), on_device([0] * len(ids), np.int32)
        with in_order(self.mesh):
            state, cache = self._chunk(
                self.operands, on_device(ids, np.int32), starts, last, cache=group.cache
            )
        moved = zip(group.lengths, tokens, strict=True)
        return RowGroup(
            lengths=tuple(length + (token is not None) for length, token in moved),
            cache=cache,
            logits=state,
        )

    def grow(self, prefix: Prefix, *, reserve: int) -> Prefix:
        """The same prefix with room for `reserve` more tokens."""
        capacity = capacity_for(prefix.capacity, prefix.length + reserve)
        if capacity == prefix.capacity:
            return prefix
        return replace(prefix, capacity=capacity, cache=_grown(prefix.cache, capacity))

    def _append(self, program: jax.stages.Wrapped, prefix: Prefix, token: int) -> Prefix:
        require_ids([token], self.config)
        if prefix.length >= self.config.context_length:
            raise UsageError(
                f"The context of {self.config.context_length} tokens is full: "
                "shorten the prompt or lower max_tokens."
            )
        prefix = self.grow(prefix, reserve=1)
        start, last = on_device([prefix.length], np.int32), on_device([0], np.int32)
        with in_order(self.mesh):
            state, cache = program(
                self.operands, on_device([[token]], np.int32), start, last, cache=prefix.cache
            )
        return replace(prefix, length=prefix.length + 1, cache=cache, logits=state[0])

    def _empty(self, batch: int, capacity: int) -> Cache:
        return self.form.empty_cache(batch, capacity, self.cache_dtype)

    def require_fit(self, ids: Sequence[int], reserve: int) -> None:
        """Raise UsageError unless the ids are the model's and fit with `reserve` more."""
        if not len(ids):
            raise UsageError("The prompt is empty: give it at least one token.")
        require_ids(ids, self.config)
        limit = self.config.context_length
        if len(ids) + reserve > limit:
            raise UsageError(
                f"{len(ids)} prompt tokens and {reserve} new ones exceed the model's context of "
                f"{limit} tokens: shorten the prompt or lower max_tokens."
            )


def require_ids(ids: Iterable[int], config: DecoderConfig) -> None:
    """Raise UsageError for an id without an embedding row."""
    rows = config.vocab_size
    for token in ids:
        if not 0 <= token < rows:
            raise UsageError(
                f"Token id {token} is outside the model's {rows} embedding rows: "
                "use ids of the model's own tokenizer."
            )


def _run_chunk(
    params: DecoderParams,
    ids: Int[Array, "R T"],
    starts: Int[Array, "R"],
    last: Int[Array, "R"],
    *,
    cache: Cache,
    form: ProgramForm,
) -> tuple[Float[Array, "R V"], Cache]:
    """Run a chunk; logits of each row's token number `last` alone, for the head is a large part
    of a small model's work."""
    with native_decoding(form.is_native):
        x, cache = extend(params, ids, starts, cache, config=form.config)
        ends = jnp.take_along_axis(x, last[:, None, None], axis=1)
        return form.logits(params, ends)[:, 0], form.kept(cache)


def _score_chunk(
    params: DecoderParams,
    ids: Int[Array, "R T"],
    starts: Int[Array, "R"],
    *,
    cache: Cache,
    form: ProgramForm,
) -> tuple[Float[Array, "R T V"], Cache]:
    with native_decoding(form.is_native):
        x, cache = extend(params, ids, starts, cache, config=form.config)
        return form.logits(params, x), form.kept(cache)


def num_compiled(program: Callable[..., object]) -> int:
    """How many programs a jitted function has compiled."""
    count: int = program._cache_size()  # type: ignore[attr-defined]  # JAX has no public name
    return count


def _has_kernel(weight: Array | QuantizedWeight) -> bool:
    return isinstance(weight, QuantizedWeight) or weight.dtype.name in DENSE_DTYPES


def _default_rows_per_call(is_native: bool) -> int:
    """One row where XLA computes on a CPU, which multiplies two to sixteen rows at a quarter of
    the rate at which it multiplies one (docs/lab-book.md); eight elsewhere."""
    return 8 if is_native or jax.default_backend() != "cpu" else 1


def _grown(cache: Cache, capacity: int) -> Cache:
    def grow(array: Array) -> Array:
        missing = capacity - array.shape[2]
        if not missing:
            return array
        return jnp.pad(array, [(0, missing if axis == 2 else 0) for axis in range(array.ndim)])

    grown: Cache = jax.tree.map(grow, cache)
    return grown
