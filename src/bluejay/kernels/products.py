"""Products of training: float32 operands and results, by our own kernels, with their gradients.

Axes: R rows  C columns  K the summed axis
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bluejay.kernels.library import cpu_library

# What the operands are rounded to; sums are float32 in both.
Precision = Literal["float32", "bfloat16"]

_precision: ContextVar[Precision | None] = ContextVar("precision", default=None)


@contextmanager
def native_products(precision: Precision) -> Iterator[None]:
    """Whatever is traced inside multiplies large float32 matrices by native kernels, where they
    are; bfloat16 is float32 on processors without such an instruction."""
    token = _precision.set(precision)
    try:
        yield
    finally:
        _precision.reset(token)


def native_precision() -> Precision | None:
    """How `matmul` would multiply here and now; None: there is nothing native here."""
    wish = _precision.get()
    found = None if wish is None else cpu_library()
    if found is None:
        return None
    return wish if found.has_bfloat16 else "float32"


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def matmul(
    left: Float[Array, "R K"], right: Float[Array, "C K"], precision: Precision
) -> Float[Array, "R C"]:
    """left . right^T. The gradients' products are computed in the same precision."""
    return _multiply(left, right, precision)


def _multiply(
    left: Array,
    right: Array,
    precision: Precision,
    *,
    left_turned: bool = False,
    right_turned: bool = False,
) -> Array:
    """sum over k of left[m, k] right[n, k]; a turned operand has k as its first axis."""
    shape = (left.shape[int(left_turned)], right.shape[int(right_turned)])
    call = jax.ffi.ffi_call("bluejay_matmul", jax.ShapeDtypeStruct(shape, jnp.float32))
    product: Array = call(
        left,
        right,
        left_turned=left_turned,
        right_turned=right_turned,
        in_bfloat16=precision == "bfloat16",
    )
    return product


def _forward(left: Array, right: Array, precision: Precision) -> tuple[Array, tuple[Array, Array]]:
    return _multiply(left, right, precision), (left, right)


def _backward(
    precision: Precision, kept: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    left, right = kept
    return (
        _multiply(gradient, right, precision, right_turned=True),
        _multiply(gradient, left, precision, left_turned=True, right_turned=True),
    )


matmul.defvjp(_forward, _backward)
