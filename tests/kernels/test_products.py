"""Products against float64, on every instruction set of this processor."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bluejay.kernels.library import Library
from bluejay.kernels.products import Precision, matmul, native_precision, native_products

sizes = st.integers(1, 70)
each_library = settings(
    max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def multiplied(left: np.ndarray, right: np.ndarray, precision: Precision) -> np.ndarray:
    return np.asarray(matmul(jnp.asarray(left), jnp.asarray(right), precision))


def operands(rows: int, columns: int, depth: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(rows * 7919 + columns * 104729 + depth)
    left, right = random.normal(size=(rows, depth)), random.normal(size=(columns, depth))
    return left.astype(np.float32), right.astype(np.float32)


def precisions(native: Library) -> tuple[Precision, ...]:
    return ("float32", "bfloat16") if native.has_bfloat16 else ("float32",)


def assert_is_product(
    found: np.ndarray | jax.Array, left: np.ndarray, right: np.ndarray, precision: Precision
) -> None:
    """Within the rounding of float32 sums of the (rounded) operands."""
    if precision == "bfloat16":
        left, right = (x.astype(ml_dtypes.bfloat16).astype(np.float32) for x in (left, right))
    exact = left.astype(np.float64) @ right.astype(np.float64).T
    size = np.abs(left).astype(np.float64) @ np.abs(right).astype(np.float64).T
    bound = 2.0 * np.finfo(np.float32).eps * np.sqrt(left.shape[1] + 1.0) * size
    assert np.all(np.abs(np.asarray(found, np.float64) - exact) <= bound)


class TestMatmul:
    @each_library
    @given(rows=sizes, columns=sizes, depth=sizes)
    def test_any_size(self, native: Library, rows: int, columns: int, depth: int) -> None:
        left, right = operands(rows, columns, depth)
        for precision in precisions(native):
            assert_is_product(multiplied(left, right, precision), left, right, precision)

    @pytest.mark.parametrize(
        ("rows", "columns", "depth"), [(130, 97, 1300), (3, 700, 513), (1024, 896, 224)]
    )
    def test_sums_over_several_slices(
        self, native: Library, rows: int, columns: int, depth: int
    ) -> None:
        left, right = operands(rows, columns, depth)
        for precision in precisions(native):
            assert_is_product(multiplied(left, right, precision), left, right, precision)

    def test_gradients_are_products(self, native: Library) -> None:
        left, right = operands(45, 37, 51)
        upstream = operands(45, 37, 1)[0] * operands(37, 1, 1)[0].T
        for precision in precisions(native):
            _, pull = jax.vjp(
                lambda a, b, p=precision: matmul(a, b, p), *map(jnp.asarray, (left, right))
            )
            dleft, dright = pull(jnp.asarray(upstream))
            assert_is_product(dleft, upstream, right.T, precision)
            assert_is_product(dright, upstream.T, left.T, precision)

    def test_a_row_does_not_depend_on_rows_and_threads(self, native: Library) -> None:
        left, right = operands(300, 130, 600)
        before = native.num_threads
        for precision in precisions(native):
            found = []
            for threads in (before, 1, 3):
                native.set_num_threads(threads)
                found.append(multiplied(left, right, precision).tobytes())
            native.set_num_threads(before)
            assert len(set(found)) == 1
            whole = multiplied(left, right, precision)
            for rows in (1, 13, 15, 112):
                part = multiplied(left[:rows], right, precision)
                assert part.tobytes() == whole[:rows].tobytes()

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    def test_what_is_not_finite_is_passed_on(self, native: Library, bad: float) -> None:
        left, right = operands(20, 40, 33)
        left[3, 5], right[7, 5] = bad, 2.0
        with np.errstate(invalid="ignore"):
            expected = left @ right.T
        for precision in precisions(native):
            found = multiplied(left, right, precision)
            np.testing.assert_array_equal(np.isnan(found), np.isnan(expected))
            np.testing.assert_array_equal(np.isinf(found), np.isinf(expected))

    def test_bfloat16_where_there_is_none_is_an_error(self, native: Library) -> None:
        if not native.has_bfloat16:
            left, right = operands(2, 3, 4)
            with pytest.raises(jax.errors.JaxRuntimeError, match="multiplies no bfloat16"):
                multiplied(left, right, "bfloat16")


def test_shapes_that_do_not_fit_are_an_error(native: Library) -> None:
    call = jax.ffi.ffi_call("bluejay_matmul", jax.ShapeDtypeStruct((4, 5), jnp.float32))
    left, right = jnp.ones((4, 6)), jnp.ones((5, 7))
    with pytest.raises(jax.errors.JaxRuntimeError, match="shapes of a matmul do not fit"):
        jax.block_until_ready(
            call(left, right, left_turned=False, right_turned=False, in_bfloat16=False)
        )


def test_only_inside_the_block(native: Library) -> None:
    assert native_precision() is None
    with native_products("bfloat16"):
        assert native_precision() == ("bfloat16" if native.has_bfloat16 else "float32")
    assert native_precision() is None
