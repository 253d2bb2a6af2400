"""What a decoder thinks of a text before it says anything: its last hidden states, pooled.

Axes: T tokens of a chunk  D embed
"""

from collections.abc import Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float32, Int32
from numpy.typing import NDArray

from bluejay.generation.device_arrays import on_device, padded
from bluejay.generation.program_form import ProgramForm
from bluejay.generation.prompt_chunks import CHUNK_SIZES, chunks
from bluejay.generation.runner import Runner
from bluejay.kernels.decoding import native_decoding
from bluejay.mesh.programs import in_order
from bluejay.model.cache import Cache, cache_capacity
from bluejay.model.decoder import extend, final_norm
from bluejay.model.params import DecoderParams


class HiddenStates:
    """Hidden states behind the final norm, of texts of up to `context_length` tokens.

    Used by one thread at a time. A call takes a cache of that length and gives it back.
    """

    def __init__(self, runner: Runner, *, context_length: int) -> None:
        self._runner, self._context_length = runner, context_length
        self._capacity = cache_capacity(context_length)
        chunk = partial(_run_chunk, form=runner.form)
        self._chunk = jax.jit(chunk, donate_argnames=("total", "cache"))

    def warm_up(self) -> None:
        """Compile every program."""
        for size in CHUNK_SIZES:
            if size <= self._context_length or size == CHUNK_SIZES[-1]:
                self.pooled([0] * min(size, self._context_length), pooling="mean")

    def pooled(
        self, ids: Sequence[int], *, pooling: Literal["mean", "last"]
    ) -> NDArray[np.float32]:
        """[D]: the mean over all positions, or what the last one has.

        Raises UsageError as `Runner.start` does.
        """
        runner = self._runner
        runner.require_fit(ids, 0)
        cache = runner.form.empty_cache(1, self._capacity, runner.cache_dtype)
        total = on_device(np.zeros(runner.config.embed_dim), np.float32, runner.mesh)
        last = total
        for begin, size in chunks(len(ids)):
            piece = ids[begin : begin + size]
            ids_here, place = padded(piece, size), on_device([begin, len(piece)], np.int32)
            with in_order(runner.mesh):
                total, last, cache = self._chunk(
                    runner.operands, ids_here, place, total=total, cache=cache
                )
        found = np.asarray(total) / np.float32(len(ids)) if pooling == "mean" else np.asarray(last)
        return found.astype(np.float32)


def _run_chunk(
    params: DecoderParams,
    ids: Int32[Array, "1 T"],
    place: Int32[Array, "2"],
    *,
    total: Float32[Array, "D"],
    cache: Cache,
    form: ProgramForm,
) -> tuple[Float32[Array, "D"], Float32[Array, "D"], Cache]:
    """The sum with the states of the chunk's tokens, the last of them, and the cache; `place` is
    where the chunk begins and how many of its ids are tokens of the text."""
    starts, count = place[:1], place[1]
    with native_decoding(form.is_native):
        x, cache = extend(params, ids, starts, cache, config=form.config)
        states = form.whole(final_norm(params, x, config=form.config)[0].astype(jnp.float32))
    is_text = jnp.arange(ids.shape[1], dtype=jnp.int32) < count
    summed = jnp.where(is_text[:, None], states, jnp.float32(0)).sum(axis=0)
    last = jax.lax.dynamic_index_in_dim(states, count - 1, keepdims=False)
    return total + summed, last, form.kept(cache)
