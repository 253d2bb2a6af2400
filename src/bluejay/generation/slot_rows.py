"""What the host tells a program about the rows of a call: two small arrays of numbers.

A row's state between two calls is a handful of numbers that the host knows anyway, so nothing but
the cache stays on the device: requests come, go and fail without a program for it.

Axes: R rows  I whole numbers of a row  F others  V vocabulary  X stop ids
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32
from numpy.typing import NDArray

from bluejay.generation.random import seed_words
from bluejay.generation.sampling_params import SamplingParams
from bluejay.generation.sampling_rows import SamplingRows

# Ids that end a row on the device; the host looks for all of them, these save the steps behind.
NUM_STOP_IDS: Final = 8
BLANK_SLOT: Final = -1
_PLACE = ("slot", "token", "length", "num_chosen", "remaining", "has_bias")
_FIXED = ("top_k", "sample", "seed_high", "seed_low")
_NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)


@dataclass(frozen=True, kw_only=True)
class SlotRow:
    """One row of a call.

    `token` was chosen and is not in the cache, of which the row has `length` positions. So many
    choices were made before (`num_chosen`) and may still be made (`remaining`).
    """

    slot: int
    token: int = 0
    length: int = 0
    num_chosen: int = 0
    remaining: int = 1
    has_bias: bool = False
    fixed: "FixedNumbers"


class FixedNumbers(NamedTuple):
    """How a sample chooses and ends: the same in all calls."""

    whole: NDArray[np.int32]
    numbers: NDArray[np.float32]


def fixed_numbers(
    params: SamplingParams, *, sample_index: int = 0, stop_ids: frozenset[int] = frozenset()
) -> FixedNumbers:
    """Numbers of one sample."""
    stops = [*sorted(stop_ids)[:NUM_STOP_IDS], *[-1] * NUM_STOP_IDS][:NUM_STOP_IDS]
    high, low = seed_words(params.seed).view(np.int32).tolist()
    return FixedNumbers(
        np.array([params.top_k, sample_index, high, low, *stops], np.int32),
        np.array([getattr(params, name) for name in _NUMBERS], np.float32),
    )


class RowInputs(NamedTuple):
    """Rows as programs take them."""

    whole: Int32[Array, "R I"]
    numbers: Float32[Array, "R F"]

    @property
    def stop_ids(self) -> Int32[Array, "R X"]:
        return self.whole[:, len(_PLACE) + len(_FIXED) :]

    def column(self, name: str) -> Array:
        """One number of every row."""
        if name in _NUMBERS:
            return self.numbers[:, _NUMBERS.index(name)]
        return self.whole[:, (*_PLACE, *_FIXED).index(name)]

    def sampling(
        self, allowed: Bool[Array, "V"], bias: Float32[Array, "R V"] | None
    ) -> SamplingRows:
        """How each row chooses."""
        size = self.whole.shape[0]
        at = len(_PLACE) + _FIXED.index("seed_high")
        return SamplingRows(
            allowed=jnp.broadcast_to(allowed[None], (size, allowed.shape[0])),
            top_k=self.column("top_k"),
            samples=self.column("sample"),
            seeds=jax.lax.bitcast_convert_type(self.whole[:, at : at + 2], jnp.uint32),
            logit_bias=bias,
            **{name: self.column(name) for name in _NUMBERS},
        )


class PackedRows(NamedTuple):
    """Rows of a call on the host."""

    whole: NDArray[np.int32]
    numbers: NDArray[np.float32]


def packed_rows(rows: Sequence[SlotRow], *, size: int, places: Sequence[int]) -> PackedRows:
    """So many rows, each of these at its place, blank ones elsewhere.

    Rows that are blank choose nothing, and what they write, nobody reads.
    """
    whole = np.zeros((size, len(_PLACE) + len(_FIXED) + NUM_STOP_IDS), np.int32)
    numbers = np.ones((size, len(_NUMBERS)), np.float32)
    whole[:, 0] = BLANK_SLOT
    for at, row in zip(places, rows, strict=True):
        whole[at, : len(_PLACE)] = (
            row.slot,
            row.token,
            row.length,
            row.num_chosen,
            row.remaining,
            row.has_bias,
        )
        whole[at, len(_PLACE) :] = row.fixed.whole
        numbers[at] = row.fixed.numbers
    return PackedRows(whole, numbers)
