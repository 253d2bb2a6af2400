"""The one product of activations and weights.

Every weight is stored with its output axes first and its input axes last, as published torch
checkpoints and block-quantized files store theirs: import is a memory map, a block of 32 input
values lies together, and the embedding serves as a tied head unchanged. The decision and the
figures behind it: docs/decisions/0009-output-major-weights.md.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bluejay.kernels.decoding import (
    DENSE_DTYPES,
    StoredWeight,
    decodes_natively,
    multiplies_quantized,
    multiply_weights,
)
from bluejay.kernels.products import matmul, native_precision
from bluejay.nn.quantized import QuantizedWeight, dequantize

# A weight as parameter trees carry it. `contract` is the only function that cares which it meets.
Weight = Array | QuantizedWeight

Observer = Callable[[Array, Weight], None]
_observer: ContextVar[Observer | None] = ContextVar("observer", default=None)


@contextmanager
def observing_contractions(observer: Observer) -> Iterator[None]:
    """`observer` sees the operands of every product that is traced inside, activations first."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def contract(equation: str, x: Float[Array, "..."], w: Weight) -> Float[Array, "..."]:
    """Product of activations with one weight, such as "BTD,NHD->BTNH", in the activations' dtype.

    The contracted axes stand last in both operands. Products of float32 are true float32
    products on every device (a GPU's default would round the operands to TF32); narrower dtypes
    accumulate in float32 and are rounded once.
    """
    return contract_to_float32(equation, x, w).astype(x.dtype)


def contract_to_float32(equation: str, x: Float[Array, "..."], w: Weight) -> Float[Array, "..."]:
    """As `contract`, but keeps the float32 accumulator: for logits."""
    inner = _inner_rank(equation)
    rows, columns = x.shape[: x.ndim - inner], w.shape[: w.ndim - inner]
    assert x.shape[len(rows) :] == w.shape[len(columns) :], (equation, x.shape, w.shape)
    # Spelled as a product of two matrices: given more axes, XLA's CPU compiler transposes a copy
    # of the weight at every call (a 30-layer decode step took 200 ms in place of 25).
    inputs = math.prod(x.shape[len(rows) :])
    observer = _observer.get()
    if observer is not None:
        observer(x, w)
    if isinstance(w, QuantizedWeight):
        return _multiply_quantized(x.reshape(-1, inputs), w).reshape(*rows, *columns)
    if decodes_natively() and x.dtype == jnp.float32 and w.dtype.name in DENSE_DTYPES:
        stored = StoredWeight(w.reshape(-1, inputs))
        product = multiply_weights(x.reshape(-1, inputs), stored, outputs=math.prod(columns))
        return product.reshape(*rows, *columns)
    precision = native_precision()
    if precision is not None and x.dtype == w.dtype == jnp.float32:
        product = matmul(x.reshape(-1, inputs), w.reshape(-1, inputs), precision)
        return product.reshape(*rows, *columns)
    product = jax.lax.dot_general(
        x.reshape(-1, inputs),
        w.astype(x.dtype).reshape(-1, inputs),
        dimension_numbers=(((1,), (1,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )
    return product.reshape(*rows, *columns)


def _multiply_quantized(x: Float[Array, "R I"], w: QuantizedWeight) -> Float[Array, "R N"]:
    """Integer products in native code, rows rounded to 8 bits; without it, exact float32 ones."""
    if multiplies_quantized():
        stored = StoredWeight(w.codes, w.scales, w.offsets)
        return multiply_weights(x.astype(jnp.float32), stored, outputs=w.num_outputs)
    return contract_to_float32("RI,NI->RN", x, dequantize(w).reshape(-1, x.shape[1]))


def _inner_rank(equation: str) -> int:
    """The number of contracted axes; the equation must keep each operand's order."""
    operands, result = equation.split("->")
    x, w = operands.split(",")
    inner = sum(letter not in result for letter in x)
    assert x[len(x) - inner :] == w[len(w) - inner :], equation
    assert result == x[: len(x) - inner] + w[: len(w) - inner], equation
    return inner
