"""What a decode loop carries from call to call, and what its programs share.

Axes: R rows  V vocabulary  M most steps of a call  A alternatives  X stop ids
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass
from jaxtyping import Array, Bool, Float32, Int32

from bluejay.generation.program_form import ProgramForm
from bluejay.generation.sampling import Choices, choose_rows
from bluejay.generation.sampling_rows import SamplingRows, SamplingState
from bluejay.model.cache import Cache

MOST_STEPS = 32


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class LoopState:
    """What one step hands to the next."""

    tokens: Array  # int32 R: chosen, not yet in the cache
    lengths: Array  # int32 R: positions in the cache
    is_live: Array  # bool R: rows that go on
    cache: Cache
    sampling: SamplingState


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class LoopRows:
    """What stays the same: how each row chooses, and the ids that end it."""

    sampling: SamplingRows
    stop_ids: Array  # int32 R X, filled up with -1


@dataclass(frozen=True, kw_only=True)
class LoopForm(ProgramForm):
    """What a loop is compiled for."""

    transforms: frozenset[str]
    num_alternatives: int

    def choose(
        self, scores: Float32[Array, "R V"], rows: LoopRows, state: SamplingState
    ) -> tuple[Choices, SamplingState]:
        """One id per row."""
        chosen: tuple[Choices, SamplingState] = choose_rows(
            scores,
            rows.sampling,
            state,
            transforms=self.transforms,
            num_alternatives=self.num_alternatives,
            is_native=self.is_native,
        )
        return chosen


def is_stop(ids: Int32[Array, "R"], stop_ids: Int32[Array, "R X"]) -> Bool[Array, "R"]:
    """Which rows end with these ids."""
    return jnp.any(ids[:, None] == stop_ids, axis=1)


def noted(found: Choices, new: Choices, step: Int32[Array, ""]) -> Choices:
    """All choices of a call with those of this step."""
    noted: Choices = jax.tree.map(
        lambda all, one: jax.lax.dynamic_update_index_in_dim(all, one, step, 0), found, new
    )
    return noted


def no_choices(rows: int, alternatives: int) -> Choices:
    """Zeros for the choices of a call."""
    return Choices(
        jnp.zeros((MOST_STEPS, rows), jnp.int32),
        jnp.zeros((MOST_STEPS, rows), jnp.float32),
        jnp.zeros((MOST_STEPS, rows, alternatives), jnp.int32),
        jnp.zeros((MOST_STEPS, rows, alternatives), jnp.float32),
    )
