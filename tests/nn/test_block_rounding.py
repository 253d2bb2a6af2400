"""Rounding in blocks against the published quantizer, and compensation against what it promises."""

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from bluejay.nn.block_rounding import Rounded, round_rows
from bluejay.nn.error_compensation import compensation_of, round_compensated
from bluejay.nn.quantized import BLOCK

KINDS = {"Q8_0": (8, False), "Q4_0": (4, False), "Q4_1": (4, True)}
OUTPUTS, INPUTS = 48, 192


def values_of(seed: int = 0) -> NDArray[np.float32]:
    """Weights with heavier tails than a normal's, as trained ones have."""
    drawn = np.random.default_rng(seed).standard_t(5, (OUTPUTS, INPUTS))
    return (0.02 * drawn).astype(np.float32)


def restored(rounded: Rounded, bits: int) -> NDArray[np.float32]:
    zero = 0 if rounded.offsets is not None else 1 << (bits - 1)
    codes = rounded.codes.reshape(len(rounded.codes), -1, BLOCK).astype(np.float32) - zero
    values = codes * rounded.scales.astype(np.float32)[:, :, None]
    if rounded.offsets is not None:
        values += rounded.offsets.astype(np.float32)[:, :, None]
    return values.reshape(rounded.codes.shape)


def squared(error: NDArray[np.float32]) -> float:
    return float(np.square(error.astype(np.float64)).sum())


@pytest.mark.parametrize("kind", KINDS)
def test_the_error_is_below_that_of_the_published_quantizer(kind: str) -> None:
    bits, has_offsets = KINDS[kind]
    values = values_of()
    number = gguf.GGMLQuantizationType[kind]
    theirs = gguf.quants.dequantize(gguf.quants.quantize(values, number), number)
    ours = restored(round_rows(values, bits=bits, has_offsets=has_offsets), bits)
    share = squared(ours - values) / squared(theirs - values)
    print(f"{kind}: {share:.2f} of the squared error")
    assert share < 0.95


@pytest.mark.parametrize("kind", KINDS)
def test_values_that_codes_reach_come_back(kind: str) -> None:
    """Blocks that use their least and their largest code, with scales that float16 holds."""
    bits, has_offsets = KINDS[kind]
    random = np.random.default_rng(1)
    codes = random.integers(0, 1 << bits, (OUTPUTS, INPUTS // BLOCK, BLOCK)).astype(np.float32)
    codes[:, :, 0], codes[:, :, 1] = 0, (1 << bits) - 1
    steps = np.float16(random.uniform(0.001, 0.01, (OUTPUTS, INPUTS // BLOCK, 1))).astype(
        np.float32
    )
    base = np.float32(-0.25) if has_offsets else -steps * (1 << (bits - 1))
    values = (codes * steps + base).reshape(OUTPUTS, INPUTS).astype(np.float32)
    found = restored(round_rows(values, bits=bits, has_offsets=has_offsets), bits)
    np.testing.assert_allclose(found, values, rtol=0, atol=2e-3 * float(np.abs(values).max()))


@pytest.mark.parametrize("kind", KINDS)
def test_zeros_and_equal_values(kind: str) -> None:
    bits, has_offsets = KINDS[kind]
    values = values_of()
    values[0, :BLOCK], values[1, :BLOCK], values[2, :BLOCK] = 0, 0.5, -0.5
    found = restored(round_rows(values, bits=bits, has_offsets=has_offsets), bits)
    assert not found[0, :BLOCK].any()
    np.testing.assert_allclose(found[1:3, :BLOCK], values[1:3, :BLOCK], rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_importance_moves_the_error_away_from_what_counts(kind: str) -> None:
    bits, has_offsets = KINDS[kind]
    values, importance = values_of(), np.ones(INPUTS, np.float32)
    importance[::8] = 100
    plain = restored(round_rows(values, bits=bits, has_offsets=has_offsets), bits)
    weighed = restored(
        round_rows(values, bits=bits, has_offsets=has_offsets, importance=importance), bits
    )
    assert squared((weighed - values)[:, ::8]) < squared((plain - values)[:, ::8])


def correlated_inputs() -> NDArray[np.float32]:
    random = np.random.default_rng(3)
    mixed = random.normal(size=(2000, INPUTS)) @ (
        np.eye(INPUTS) + 0.15 * random.normal(size=(INPUTS, INPUTS))
    )
    return mixed.astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("parts", [1, 2])
def test_compensation_lowers_the_error_of_the_product(kind: str, parts: int) -> None:
    bits, has_offsets = KINDS[kind]
    values, inputs = values_of(), correlated_inputs()
    split = inputs.reshape(len(inputs), parts, INPUTS // parts)
    moments = np.einsum("rcw,rcv->cwv", split, split) / np.float32(len(inputs))
    known = compensation_of(moments)
    plain = restored(round_rows(values, bits=bits, has_offsets=has_offsets), bits)
    better = restored(round_compensated(values, known, bits=bits, has_offsets=has_offsets), bits)
    share = squared(inputs @ (better - values).T) / squared(inputs @ (plain - values).T)
    print(f"{kind}: {share:.2f} of the squared error of the product")
    assert share < (0.7 if parts == 1 else 0.9)  # correlations between parts are not seen


@pytest.mark.parametrize("kind", KINDS)
def test_independent_inputs_need_no_compensation(kind: str) -> None:
    bits, has_offsets = KINDS[kind]
    known = compensation_of(np.eye(INPUTS, dtype=np.float32)[None])
    plain = round_rows(values_of(), bits=bits, has_offsets=has_offsets)
    found = round_compensated(values_of(), known, bits=bits, has_offsets=has_offsets)
    # Scales that do equally well within float32's rounding may be chosen differently.
    of_blocks = (OUTPUTS, INPUTS // BLOCK, BLOCK)
    same = (found.codes == plain.codes).reshape(of_blocks).all(axis=-1)
    assert same.mean() >= 0.97
    ours, theirs = (squared(restored(r, bits) - values_of()) for r in (found, plain))
    assert abs(ours / theirs - 1) < 1e-3


def test_factors_are_those_of_the_damped_inverse() -> None:
    inputs = correlated_inputs()
    moments = inputs.T @ inputs / np.float32(len(inputs))
    [factor] = compensation_of(moments[None]).factors
    damped = moments + 0.01 * np.trace(moments) / INPUTS * np.eye(INPUTS)
    assert not np.tril(factor, -1).any()
    inverse = factor.astype(np.float64).T @ factor.astype(np.float64)
    np.testing.assert_allclose(inverse @ damped, np.eye(INPUTS), atol=1e-3)
