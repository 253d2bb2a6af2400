"""Rounding that corrects itself: each input's error is made up for by the inputs behind it.

The method of GPTQ (Frantar et al. 2022, arXiv:2210.17323): with H the second moments of the inputs
and U the upper triangular factor of inv(H) = U^T U, rounding input i with an error e changes
the weights of every later input j by -e U[i, j] / U[i, i], which keeps the product's error least.
Inputs are taken in their own order, for blocks of 32 neighbours share a scale.

Axes: N outputs  I inputs  C parts of the inputs that are compensated apart  W inputs of a part
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bluejay.nn.block_rounding import Rounded, round_rows
from bluejay.nn.quantized import BLOCK

# Added to the diagonal of H, as a share of its mean: inputs that are almost never on stay put.
_DAMPING = 0.01
# Inputs between two updates of all the weights behind them.
_LAZY = 256


@dataclass(frozen=True, kw_only=True)
class Compensation:
    """What rounding needs to know of the inputs, for every weight that is multiplied with them.

    `factors` are U [W, W] of each part, `importance` [I] the inputs' mean squares.
    """

    factors: tuple[NDArray[np.float32], ...]
    importance: NDArray[np.float32]


def compensation_of(moments: NDArray[np.float32]) -> Compensation:
    """From second moments [C, W, W] of the inputs, which are those of C parts, one by one."""
    return Compensation(
        factors=tuple(_factor(part) for part in moments),
        importance=np.concatenate([np.diagonal(part) for part in moments]),
    )


def round_compensated(
    values: NDArray[np.float32], known: Compensation, *, bits: int, has_offsets: bool
) -> Rounded:
    """As `round_rows`, of [N, I] values whose inputs are known.

    Scales are chosen when a block's turn comes, from its weights as corrected so far, each input
    weighed by its mean square.
    """
    done, begin = [], 0
    for factor in known.factors:
        part = slice(begin, begin + len(factor))
        rounding = _Rounding(factor, known.importance[part], bits, has_offsets)
        done.append(rounding.run(values[:, part]))
        begin = part.stop
    assert begin == values.shape[1]
    codes, scales, offsets = zip(*done, strict=True)
    together = np.concatenate(offsets, axis=1) if has_offsets else None
    return Rounded(np.concatenate(codes, axis=1), np.concatenate(scales, axis=1), together)


def _factor(moments: NDArray[np.float32]) -> NDArray[np.float32]:
    """The upper triangular U [W, W] with inv(H) = U^T U, of damped second moments H."""
    wide = moments.astype(np.float64)
    mean = float(np.trace(wide)) / len(wide)
    wide += np.eye(len(wide)) * (_DAMPING * mean if mean > 0 else 1.0)
    # H reversed in both axes is M M^T with M lower, so H = R R^T with R upper, and U is inv(R).
    reversed_factor = np.linalg.cholesky(wide[::-1, ::-1])
    upper = np.linalg.inv(reversed_factor[::-1, ::-1])
    return np.ascontiguousarray(np.triu(upper).astype(np.float32))


@dataclass(frozen=True)
class _Rounding:
    """Of the inputs of one part."""

    factor: NDArray[np.float32]
    importance: NDArray[np.float32]
    bits: int
    has_offsets: bool

    def run(self, values: NDArray[np.float32]) -> Rounded:
        outputs, inputs = values.shape
        left = np.array(values.T, order="C")  # I N: an input's weights lie together
        codes = np.empty((inputs, outputs), np.uint8)
        scales = np.zeros((2, inputs // BLOCK, outputs), np.float16)  # and offsets
        for begin in range(0, inputs, _LAZY):
            end = min(begin + _LAZY, inputs)
            errors = np.empty((end - begin, outputs), np.float32)
            for start in range(begin, end, BLOCK):
                block = slice(start, start + BLOCK)
                own = slice(start - begin, block.stop - begin)
                codes[block], errors[own] = self._block(left, block, scales[:, start // BLOCK])
                left[block.stop : end] -= self.factor[block, block.stop : end].T @ errors[own]
            left[end:] -= self.factor[begin:end, end:].T @ errors
        turned = np.ascontiguousarray(codes.T)
        offsets = scales[1].T.copy() if self.has_offsets else None
        return Rounded(turned, scales[0].T.copy(), offsets)

    def _block(
        self, left: NDArray[np.float32], block: slice, scales: NDArray[np.float16]
    ) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
        """Codes [32, N] and the errors that later inputs make up for; fills in the scales."""
        chosen = round_rows(
            np.ascontiguousarray(left[block].T),
            bits=self.bits,
            has_offsets=self.has_offsets,
            importance=self.importance[block],
        )
        scales[0] = chosen.scales[:, 0]
        if chosen.offsets is not None:
            scales[1] = chosen.offsets[:, 0]
        scale, offset = scales.astype(np.float32)
        return _round_block(
            left[block],
            scale,
            offset,
            self.factor[block, block],
            zero=0 if self.has_offsets else 1 << (self.bits - 1),
            top=(1 << self.bits) - 1,
        )


def _round_block(
    left: NDArray[np.float32],
    scale: NDArray[np.float32],
    offset: NDArray[np.float32],
    factor: NDArray[np.float32],
    *,
    zero: int,
    top: int,
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Codes [32, N] of a block and the errors that later inputs make up for; changes `left`."""
    # As `round_rows` divides: without correlations both give the same codes for the same scales.
    divisor = np.where(scale == 0, np.float32(np.inf), scale)
    codes, errors = np.empty(left.shape, np.uint8), np.empty_like(left)
    for i in range(len(left)):
        code = np.clip(np.rint((left[i] - offset) / divisor) + zero, 0, top)
        codes[i] = code
        errors[i] = (left[i] - (scale * (code - np.float32(zero)) + offset)) / factor[i, i]
        left[i + 1 :] -= factor[i, i + 1 :, None] * errors[i]
    return codes, errors
