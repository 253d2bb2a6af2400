"""Decoding in native code: products with stored weights, and a whole block over its cache.

Axes: B batch  T new position  D embed  P rotary pairs  K key/value heads  S capacity  H head width
      R rows  I inputs  N outputs  Q groups of 16 outputs  L blocks of 32 inputs
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass
from jaxtyping import Array, Bool, Float, Int

from bluejay.kernels.library import cpu_library

_is_decoding: ContextVar[bool] = ContextVar("is_decoding", default=False)
# Types that weights and caches may have beside packed codes.
DENSE_DTYPES = ("float32", "bfloat16", "float16")
CACHE_DTYPES = ("float32", "float16", "int8")


@contextmanager
def native_decoding(is_wanted: bool = True) -> Iterator[None]:
    """Whatever is traced inside decodes by native kernels, where they are and are wanted.

    For arrays of one CPU device; what is traced has no gradient.
    """
    token = _is_decoding.set(is_wanted)
    try:
        yield
    finally:
        _is_decoding.reset(token)


def decodes_natively() -> bool:
    """Whether native kernels decode here and now."""
    return _is_decoding.get() and cpu_library() is not None


def multiplies_quantized() -> bool:
    """Whether `multiply_weights` runs here and now, for packed codes."""
    return cpu_library() is not None


class StoredWeight(NamedTuple):
    """A weight as the kernels take it.

    `data` are floats [N, ...], or codes [Q, L, 64 * bits] of the layout of `bluejay.nn.quantized`,
    which have float16 scales [Q, L, 16] and may have such offsets.
    """

    data: Array
    scales: Array | None = None
    offsets: Array | None = None

    def leaves(self) -> tuple[Array, Array, Array]:
        """The three arrays; what is absent has no elements."""
        nothing = absent()
        scales = nothing if self.scales is None else self.scales
        return self.data, scales, nothing if self.offsets is None else self.offsets


def multiply_weights(
    x: Float[Array, "R I"], weight: StoredWeight, *, outputs: int
) -> Float[Array, "R N"]:
    """x . weight^T in float32; for codes, rows of x are rounded to 8 bits per block of 32.

    A row's result does not depend on the number of threads; nor, for codes and for up to 16 rows
    of floats, on the rows beside it.
    """
    shape = jax.ShapeDtypeStruct((x.shape[0], outputs), jnp.float32)
    product: Array = jax.ffi.ffi_call("bluejay_multiply_weights", shape)(x, *weight.leaves())
    return product


class CacheArrays(NamedTuple):
    """One layer's cache; int8 has one float32 scale per position and head."""

    key: Array  # B K S H
    value: Array  # B K S H
    key_scales: Array | None = None  # B K S
    value_scales: Array | None = None  # B K S


class Linear(NamedTuple):
    """A product with its bias."""

    weight: StoredWeight
    bias: Array | None


class BlockArrays(NamedTuple):
    """A block's parameters; None where the family has no such thing."""

    norms: Sequence[Array | None]  # scale and bias of the attention's norm, then of the other
    linears: Sequence[Linear | None]  # query, key, value, out, up, gate, down

    def arrays(self) -> list[Array]:
        """All of them as the kernels take them, one without elements where there is none."""
        nothing = absent()
        found = [nothing if array is None else array for array in self.norms]
        for linear in self.linears:
            if linear is None:
                found += [nothing] * 4
            else:
                bias = nothing if linear.bias is None else linear.bias.reshape(-1)
                found += [*linear.weight.leaves(), bias]
        return found


@dataclass(frozen=True, kw_only=True)
class BlockForm:
    """What a block is, apart from its arrays."""

    heads: int
    kv_heads: int
    wide: int
    is_sequential: bool
    pairs_are_halves: bool
    activation: int  # as the enumeration of native/decoder_layer.h
    eps: float

    def attributes(self) -> dict[str, object]:
        """As the operations take them."""
        return {
            "heads": np.int64(self.heads),
            "kv_heads": np.int64(self.kv_heads),
            "wide": np.int64(self.wide),
            "is_sequential": self.is_sequential,
            "pairs_are_halves": self.pairs_are_halves,
            "activation": np.int64(self.activation),
            "eps": np.float32(self.eps),
        }


def decoder_block(
    x: Float[Array, "B T D"],
    starts: Int[Array, "B"],
    turn: tuple[Float[Array, "B T P"], Float[Array, "B T P"]],
    cache: CacheArrays,
    params: BlockArrays,
    *,
    form: BlockForm,
) -> tuple[Float[Array, "B T D"], CacheArrays]:
    """One block over T new positions of every row, and the cache with their keys and values.

    The cache is worked on in place where XLA can spare it. A position outside of it is an error.
    """
    call, cached = _block_call("bluejay_decoder_block", x, cache)
    moved, *after = call(
        x,
        starts,
        *turn,
        *cached,
        *params.arrays(),
        **form.attributes(),
    )
    return moved, _like(cache, after)


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class ResidentBlocks:
    """Blocks whose parameters the native library knows by number (see `resident_blocks`)."""

    numbers: Int[Array, "L"]


def resident_block(
    x: Float[Array, "B T D"],
    starts: Int[Array, "B"],
    turn: tuple[Float[Array, "B T P"], Float[Array, "B T P"]],
    cache: CacheArrays,
    blocks: ResidentBlocks,
    *,
    layer: int,
) -> tuple[Float[Array, "B T D"], CacheArrays]:
    """As `decoder_block`, of the block whose number stands at `layer`."""
    call, cached = _block_call("bluejay_resident_block", x, cache)
    moved, *after = call(x, starts, *turn, *cached, blocks.numbers, layer=np.int64(layer))
    return moved, _like(cache, after)


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class SlotRows:
    """Rows of a cache that the native library knows by number (see `slot_cache`).

    Row r of a call has the cache's row `slots[r]`, each another one; those with -1 stand last, are
    given zeros and cost nothing.
    """

    cache: Int[Array, "1"]
    slots: Int[Array, "B"]


def slots_block(
    x: Float[Array, "B T D"],
    starts: Int[Array, "B"],
    turn: tuple[Float[Array, "B T P"], Float[Array, "B T P"]],
    rows: SlotRows,
    blocks: ResidentBlocks,
    *,
    layer: int,
) -> Float[Array, "B T D"]:
    """As `resident_block`, over rows of a cache that is no array of the program: it is written in
    place, in the order in which each block takes what the one before it gave."""
    call = jax.ffi.ffi_call("bluejay_slots_block", jax.ShapeDtypeStruct(x.shape, x.dtype))
    moved: Array = call(
        x, starts, *turn, blocks.numbers, rows.cache, rows.slots, layer=np.int64(layer)
    )
    return moved


def post_choices(
    cache: Int[Array, "1"], numbers: Int[Array, "B C"], may_go_on: Bool[Array, ""]
) -> Bool[Array, ""]:
    """Put what a step chose where the host reads it (`SlotCache.mail`); whether another step is to
    come: not unless `may_go_on`, and not when somebody has halted calls over that cache."""
    call = jax.ffi.ffi_call(
        "bluejay_post_choices", jax.ShapeDtypeStruct((), np.bool_), has_side_effect=True
    )
    goes_on: Array = call(cache, numbers, may_go_on)
    return goes_on


def _block_call(
    name: str, x: Float[Array, "B T D"], cache: CacheArrays
) -> tuple[Callable[..., Sequence[Array]], list[Array]]:
    """The operation, which works in place on the cache, and the arrays of the cache."""
    nothing = absent()
    cached = [nothing if array is None else array for array in cache]
    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in (x, *cached)]
    in_place = {4 + i: 1 + i for i, array in enumerate(cache) if array is not None}
    return jax.ffi.ffi_call(name, shapes, input_output_aliases=in_place), cached


def _like(cache: CacheArrays, arrays: Sequence[Array]) -> CacheArrays:
    key, value, key_scales, value_scales = arrays
    if cache.key_scales is None:
        return CacheArrays(key, value)
    return CacheArrays(key, value, key_scales, value_scales)


@functools.cache
def absent() -> Array:
    """What stands for an array that is not there: one without elements."""
    with jax.ensure_compile_time_eval():  # kept, so never a tracer
        return jnp.zeros((0,), jnp.float32)
