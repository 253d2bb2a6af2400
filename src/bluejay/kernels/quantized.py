"""Products with block-quantized weights, in native code.

Axes: R rows  I inputs  N outputs  Q groups of 16 outputs  L blocks of 32 inputs
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float16, UInt8

from bluejay.kernels.library import cpu_library


def multiplies_quantized() -> bool:
    """Whether `multiply_quantized` runs here and now."""
    return cpu_library() is not None


def multiply_quantized(
    x: Float[Array, "R I"],
    codes: UInt8[Array, "Q L X"],
    scales: Float16[Array, "Q L 16"],
    offsets: Float16[Array, "Q L 16"] | None,
    *,
    outputs: int,
) -> Float[Array, "R N"]:
    """x . weights^T in float32, the rows of x rounded to 8 bits per block of 32.

    The layout is that of `bluejay.nn.quantized`; X is 64 times the bits of a weight. A row's
    result depends neither on the rows beside it nor on the number of threads.
    """
    shape = jax.ShapeDtypeStruct((x.shape[0], outputs), jnp.float32)
    call = jax.ffi.ffi_call("bluejay_multiply_quantized", shape)
    if offsets is None:
        offsets = jnp.zeros((0,), jnp.float16)
    product: Array = call(x, codes, scales, offsets, bits=np.int64(codes.shape[-1] // 64))
    return product
