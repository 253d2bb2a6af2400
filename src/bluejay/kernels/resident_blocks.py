"""Parameters that stay where they are from call to call, so that programs need not take them.

A program of some hundred arguments has JAX look at each of them at every call: 1 to 2 ms beside a
step of 4 (docs/lab-book.md). Blocks that are kept here are one argument, an array of numbers.
"""

import weakref
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bluejay.core.large_pages import ALIGNMENT
from bluejay.kernels.decoding import BlockArrays, BlockForm, ResidentBlocks
from bluejay.kernels.library import library


def keep_blocks(
    blocks: Sequence[BlockArrays], *, form: BlockForm, embed: int, width: int
) -> ResidentBlocks:
    """Numbers of blocks of embedding width `embed` and head width `width`.

    The blocks' arrays are held as long as the array of numbers, which every program that runs or
    waits to run holds too. They must not be donated.
    """
    arrays = [block.arrays() for block in blocks]
    given = [_keep(block, form=form, embed=embed, width=width) for block in arrays]
    numbers = [int(number[0]) for number in jax.device_get(given)]
    memory = np.zeros(4 * len(numbers) + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    view = memory[begin : begin + 4 * len(numbers)].view(np.int32)
    view[:] = numbers
    # JAX takes memory at such an address as it is, and lets go of it when nothing will read it any
    # more. The arrays are let go behind the numbers.
    weakref.finalize(memory, _forget, numbers, arrays)
    placed = jax.device_put(view, may_alias=True)
    assert placed.unsafe_buffer_pointer() == view.ctypes.data, "a copy would outlive the blocks"
    return ResidentBlocks(numbers=placed)


def _keep(arrays: Sequence[Array], *, form: BlockForm, embed: int, width: int) -> Array:
    # Not inside of a jitted function: the library keeps the addresses of these very arrays.
    call = jax.ffi.ffi_call("bluejay_keep_block", jax.ShapeDtypeStruct((1,), jnp.int32))
    number: Array = call(*arrays, embed=np.int64(embed), width=np.int64(width), **form.attributes())
    return number


def _forget(numbers: Any, arrays: Any) -> None:
    # Called from the garbage collector, in the middle of anything: hints of sequences would have a
    # checker of types draw from Python's random numbers there (`beartype` looks at a random item).
    del arrays
    found = library()
    assert found is not None, "it has given these numbers"
    for number in numbers:
        found.forget_block(number)
