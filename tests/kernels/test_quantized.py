"""Products with quantized weights: the integers exactly, the rest as dequantize and multiply."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bluejay.kernels.decoding import StoredWeight, multiply_weights
from bluejay.kernels.library import Library
from bluejay.nn import contract as contract_module
from bluejay.nn.contract import contract
from bluejay.nn.quantized import (
    BLOCK,
    Int4,
    Int8,
    QuantizedWeight,
    dequantize,
    pack_codes,
    pack_scales,
    take_rows,
    unpack_codes,
)

KINDS = ("Q8_0", "Q4_0", "Q4_1")
each_library = settings(max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])


def drawn(kind: str, outputs: int, blocks: int, *, seed: int = 0) -> QuantizedWeight:
    random = np.random.default_rng([seed, outputs, blocks])
    bits = 8 if kind == "Q8_0" else 4
    codes = random.integers(0, 1 << bits, (outputs, blocks * BLOCK), dtype=np.uint8)
    scales = random.uniform(0.001, 0.1, (outputs, blocks)).astype(np.float16)
    values: dict[str, Any] = {
        "codes": pack_codes(codes, bits=bits),
        "scales": pack_scales(scales),
        "shape": (outputs, blocks * BLOCK),
    }
    if kind == "Q4_1":
        offsets = random.normal(size=(outputs, blocks)).astype(np.float16)
        return Int4(**values, offsets=pack_scales(offsets))
    return Int8(**values) if bits == 8 else Int4(**values)


def product(x: np.ndarray, weight: QuantizedWeight) -> np.ndarray:
    leaves = (weight.codes, weight.scales, weight.offsets)
    packed = (None if leaf is None else jnp.asarray(leaf) for leaf in leaves)
    return np.asarray(
        multiply_weights(jnp.asarray(x), StoredWeight(*packed), outputs=weight.num_outputs)
    )


def rounded(x: np.ndarray) -> np.ndarray:
    """The rows as the kernel sees them: signed bytes times the largest of the block over 127."""
    blocks = x.reshape(x.shape[0], -1, BLOCK)
    most = np.abs(blocks).max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        codes = np.where(most > 0, np.rint(blocks * (np.float32(127) / most)), 0)
    return (codes.astype(np.float64) * (most / np.float32(127))).reshape(x.shape)


def rows_of(count: int, inputs: int) -> np.ndarray:
    return np.random.default_rng([count, inputs]).normal(size=(count, inputs)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
class TestProduct:
    @each_library
    @given(rows=st.integers(1, 20), outputs=st.integers(1, 70), blocks=st.integers(1, 6))
    def test_of_the_rounded_rows(
        self, native: Library, kind: str, rows: int, outputs: int, blocks: int
    ) -> None:
        weight, x = drawn(kind, outputs, blocks), rows_of(rows, blocks * BLOCK)
        exact = rounded(x) @ np.asarray(dequantize(weight), np.float64).T
        size = np.abs(x).astype(np.float64) @ np.abs(np.asarray(dequantize(weight), np.float64)).T
        assert np.all(np.abs(product(x, weight) - exact) <= 1e-5 * size + 1e-6)

    def test_near_to_dequantize_and_multiply(self, native: Library, kind: str) -> None:
        """8 bits per block of 32 leave 0.4 % of a block's largest value: here 0.6 % of the sum's
        spread, stated so that a wrong scale cannot hide."""
        weight, x = drawn(kind, 300, 20), rows_of(16, 20 * BLOCK)
        exact = x @ np.asarray(dequantize(weight)).T
        error = product(x, weight) - exact
        assert np.std(error) < 0.01 * np.std(exact)

    def test_a_row_does_not_depend_on_rows_and_threads(self, native: Library, kind: str) -> None:
        weight, x = drawn(kind, 333, 9), rows_of(19, 9 * BLOCK)
        before, found = native.num_threads, []
        for threads in (before, 1, 3):
            native.set_num_threads(threads)
            found.append(product(x, weight).tobytes())
        native.set_num_threads(before)
        assert len(set(found)) == 1
        whole = product(x, weight)
        for count in (1, 2, 3, 5, 8, 13):
            assert product(x[:count], weight).tobytes() == whole[:count].tobytes()

    def test_zero_rows_and_extreme_scales(self, native: Library, kind: str) -> None:
        weight = drawn(kind, 33, 3)
        x = rows_of(4, 3 * BLOCK)
        x[0], x[1], x[2] = 0.0, x[1] * np.float32(1e30), x[2] * np.float32(1e-30)
        found = product(x, weight)
        exact = rounded(x) @ np.asarray(dequantize(weight), np.float64).T
        assert not found[0].any()
        np.testing.assert_allclose(found, exact, rtol=2e-3, atol=1e-36)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_what_is_not_finite_spoils_its_row_alone(
        self, native: Library, kind: str, bad: float
    ) -> None:
        weight, x = drawn(kind, 20, 2), rows_of(3, 2 * BLOCK)
        x[1, 7] = bad
        found = product(x, weight)
        assert np.isfinite(found[[0, 2]]).all()
        assert not np.isfinite(found[1]).any()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("outputs", [1, 15, 16, 17, 40])
def test_packing_is_reversible(bits: int, outputs: int) -> None:
    codes = np.random.default_rng(0).integers(0, 1 << bits, (outputs, 96), dtype=np.uint8)
    packed = pack_codes(codes, bits=bits)
    assert packed.nbytes == -(-outputs // 16) * 16 * 96 * bits // 8
    np.testing.assert_array_equal(unpack_codes(packed, bits=bits, outputs=outputs), codes)
    np.testing.assert_array_equal(
        unpack_codes(jnp.asarray(packed), bits=bits, outputs=outputs), codes
    )


def test_shapes_that_do_not_fit_are_an_error(native: Library) -> None:
    weight = drawn("Q4_0", 40, 3)
    with pytest.raises(jax.errors.JaxRuntimeError, match="do not fit together"):
        product(rows_of(2, 2 * BLOCK), weight)


@pytest.mark.parametrize("kind", KINDS)
def test_contract_takes_quantized_weights(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Natively as `multiply_weights`, without the library as dequantize and multiply."""
    flat = drawn(kind, 3 * 8, 4)
    weight = jax.tree.map(jnp.asarray, replace(flat, shape=(3, 8, 4 * BLOCK)))
    x = rows_of(5, 4 * BLOCK).reshape(1, 5, 4 * BLOCK)
    natively = contract("BTD,NHD->BTNH", jnp.asarray(x), weight)
    np.testing.assert_array_equal(natively.reshape(5, 24), product(x[0], flat))
    monkeypatch.setattr(contract_module, "multiplies_quantized", lambda: False)
    plainly = contract("BTD,NHD->BTNH", jnp.asarray(x), weight)
    expected = x[0] @ dequantize(flat).T
    np.testing.assert_allclose(plainly.reshape(5, 24), expected, rtol=1e-4, atol=1e-4)
    assert np.std(natively - plainly) < 0.01 * np.std(plainly)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_taken_are_those_of_the_whole(kind: str) -> None:
    """Under jit a product and a sum may be fused, which rounds once: hence not the same bits."""
    weight = jax.tree.map(jnp.asarray, drawn(kind, 37, 3))
    ids = jnp.asarray([[0, 36, 16], [15, 999, -4]])
    expected = np.asarray(dequantize(weight))[np.clip(ids, 0, 36)]
    np.testing.assert_array_equal(take_rows(weight, ids), expected)
    np.testing.assert_allclose(jax.jit(take_rows)(weight, ids), expected, rtol=0, atol=1e-6)
