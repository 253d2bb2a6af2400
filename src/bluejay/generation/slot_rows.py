"""What the host tells a program about the rows of a call, and what it hears: one array each way.

A row's state between two calls is a handful of numbers that the host knows anyway, so nothing but
the cache stays on the device: requests come, go and fail without a program for it. Each further
array would cost a call some 50 us (docs/lab-book.md).

Axes: R rows  N numbers of a row  V vocabulary  X stop ids  M steps  C numbers of a choice
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32
from numpy.typing import NDArray

from bluejay.generation.random import seed_words
from bluejay.generation.sampling import Choices
from bluejay.generation.sampling_params import SamplingParams
from bluejay.generation.sampling_rows import SamplingRows

# Ids that end a row on the device; the host looks for all of them, these save the steps behind.
NUM_STOP_IDS: Final = 8
BLANK_SLOT: Final = -1
_PLACE = ("slot", "token", "length", "num_chosen", "remaining", "has_bias")
_WHOLE = ("top_k", "sample", "seed_high", "seed_low")
_FLOATS = (
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
_COLUMNS = (*_PLACE, *_WHOLE, *_FLOATS)
_NUM_COLUMNS = len(_COLUMNS) + NUM_STOP_IDS


@dataclass(frozen=True, kw_only=True)
class SlotRow:
    """One row of a call.

    `token` was chosen and is not in the cache, of which the row has `length` positions. So many
    choices were made before (`num_chosen`) and may still be made (`remaining`). `fixed` is what
    `fixed_numbers` gives.
    """

    slot: int
    token: int = 0
    length: int = 0
    num_chosen: int = 0
    remaining: int = 1
    has_bias: bool = False
    fixed: NDArray[np.int32]


def fixed_numbers(
    params: SamplingParams, *, sample_index: int = 0, stop_ids: frozenset[int] = frozenset()
) -> NDArray[np.int32]:
    """How a sample chooses and ends, the same in all calls; floats by their bits."""
    stops = [*sorted(stop_ids)[:NUM_STOP_IDS], *[-1] * NUM_STOP_IDS][:NUM_STOP_IDS]
    high, low = seed_words(params.seed).view(np.int32).tolist()
    floats = np.array([getattr(params, name) for name in _FLOATS], np.float32).view(np.int32)
    return np.array([params.top_k, sample_index, high, low, *floats, *stops], np.int32)


def packed_rows(rows: Sequence[SlotRow], *, size: int, places: Sequence[int]) -> NDArray[np.int32]:
    """[size, N]: each of the rows at its place, blank ones elsewhere.

    Blank rows choose nothing, and what they write, nobody reads.
    """
    numbers = np.zeros((size, _NUM_COLUMNS), np.int32)
    numbers[:, 0] = BLANK_SLOT
    for at, row in zip(places, rows, strict=True):
        place = (row.slot, row.token, row.length, row.num_chosen, row.remaining, row.has_bias)
        numbers[at, : len(_PLACE)] = place
        numbers[at, len(_PLACE) :] = row.fixed
    return numbers


class RowInputs(NamedTuple):
    """Rows as programs take them."""

    numbers: Int32[Array, "R N"]

    @property
    def stop_ids(self) -> Int32[Array, "R X"]:
        return self.numbers[:, len(_COLUMNS) :]

    def column(self, name: str) -> Array:
        """One number of every row."""
        found = self.numbers[:, _COLUMNS.index(name)]
        if name in _FLOATS:
            return jax.lax.bitcast_convert_type(found, jnp.float32)
        return found

    def sampling(
        self, allowed: Bool[Array, "V"], bias: Float32[Array, "R V"] | None
    ) -> SamplingRows:
        """How each row chooses."""
        seeds = jnp.stack([self.column("seed_high"), self.column("seed_low")], axis=1)
        return SamplingRows(
            allowed=jnp.broadcast_to(allowed[None], (seeds.shape[0], allowed.shape[0])),
            top_k=self.column("top_k"),
            samples=self.column("sample"),
            seeds=jax.lax.bitcast_convert_type(seeds, jnp.uint32),
            logit_bias=bias,
            **{name: self.column(name) for name in _FLOATS},
        )


def row_inputs(rows: Sequence[SlotRow], *, size: int, places: Sequence[int]) -> RowInputs:
    """As `packed_rows`. NumPy's array: JAX takes it faster than it makes one of its own."""
    packed: Any = packed_rows(rows, size=size, places=places)
    return RowInputs(packed)


def padded_ids(rows: Sequence[Sequence[int]], size: int) -> NDArray[np.int32]:
    """[len(rows), size]: ids of a chunk, zeros behind them."""
    ids = np.zeros((len(rows), size), np.int32)
    for row, given in zip(ids, rows, strict=True):
        row[: len(given)] = given
    return ids


def choice_numbers(found: Choices) -> Int32[Array, "... C"]:
    """Choices as whole numbers: id, log probability, alternatives and theirs; floats by their
    bits."""

    def bits(array: Float32[Array, "..."]) -> Int32[Array, "..."]:
        return jax.lax.bitcast_convert_type(array, jnp.int32)

    parts = [
        found.ids[..., None],
        bits(found.logprobs)[..., None],
        found.alternative_ids,
        bits(found.alternative_logprobs),
    ]
    return jnp.concatenate(parts, axis=-1)


def num_choice_numbers(num_alternatives: int) -> int:
    """How many there are of one choice."""
    return 2 + 2 * num_alternatives


def packed_choices(found: Choices, count: Int32[Array, ""]) -> Int32[Array, "..."]:
    """Choices [M, R …] as whole numbers, with `count` in a row of its own behind them."""
    rows = choice_numbers(found)
    return jnp.concatenate([rows, jnp.broadcast_to(count, (1, *rows.shape[1:]))])


class HostChoices(NamedTuple):
    """As `Choices`, of M steps and R rows, on the host."""

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    alternative_ids: NDArray[np.int32]
    alternative_logprobs: NDArray[np.float32]

    def of_rows(self, places: Sequence[int] | slice) -> "HostChoices":
        """Those of some rows, or in another order."""
        return HostChoices(
            self.ids[:, places],
            self.logprobs[:, places],
            self.alternative_ids[:, places],
            self.alternative_logprobs[:, places],
        )


def unpacked_choices(packed: Array) -> HostChoices:
    """What `packed_choices` was given, of the first `count` steps. Waits for it."""
    numbers = np.asarray(packed)
    return host_choices(numbers[: numbers[-1, 0, 0]])


def host_choices(numbers: NDArray[np.int32]) -> HostChoices:
    """What `choice_numbers` [M, R, C] was given, without a copy."""
    most = (numbers.shape[-1] - 2) // 2
    return HostChoices(
        numbers[..., 0],
        numbers[..., 1].view(np.float32),
        numbers[..., 2 : 2 + most],
        numbers[..., 2 + most :].view(np.float32),
    )
