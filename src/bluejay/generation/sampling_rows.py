"""The parameters of a batch's choices as arrays, and what changes with each choice.

Axes: B batch  V vocabulary
"""

from dataclasses import dataclass, fields
from typing import Final

import jax.numpy as jnp
import numpy as np
from jax.tree_util import register_dataclass
from jaxtyping import Array
from numpy.typing import NDArray

from bluejay.core.errors import UsageError
from bluejay.generation.device_arrays import on_device
from bluejay.generation.random import seed_words
from bluejay.generation.sampling_params import SamplingParams

PENALTIES: Final = frozenset({"repetition_penalty", "presence_penalty", "frequency_penalty"})
FILTERS: Final = frozenset({"temperature", "top_k", "top_p", "min_p", "typical_p"})


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class SamplingRows:
    """The parameters of B rows on the device; `logit_bias` is None when no row has one."""

    allowed: Array  # bool B V
    temperature: Array  # float32 B, and so on to frequency_penalty
    top_k: Array  # int32 B
    top_p: Array
    min_p: Array
    typical_p: Array
    repetition_penalty: Array
    presence_penalty: Array
    frequency_penalty: Array
    logit_bias: Array | None  # float32 B V
    seeds: Array  # uint32 B 2
    samples: Array  # int32 B


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class SamplingState:
    """What changes with each choice. Without penalties nobody counts ids."""

    positions: Array  # int32 B
    in_prompt: Array | None  # bool B V
    counts: Array | None  # int32 B V, of generated ids


def active_transforms(params: SamplingParams) -> frozenset[str]:
    """What has to be compiled in for a row; a batch takes the union of its rows'."""
    changed = {
        field.name
        for field in fields(SamplingParams)
        if field.name in PENALTIES | FILTERS and getattr(params, field.name) != field.default
    }
    if params.logit_bias:
        changed.add("logit_bias")
    return frozenset((changed - FILTERS) | {"greedy"} if params.is_greedy else changed | {"draw"})


def sampling_row(
    params: SamplingParams,
    *,
    allowed: NDArray[np.bool_],
    sample_index: int,
    transforms: frozenset[str],
) -> SamplingRows:
    """One row's parameters for programs with these transforms; rows of a batch are concatenated.

    Raises UsageError when no id is allowed, or a biased id lies outside the vocabulary.
    """
    _check_fit(params, allowed)
    bias = np.zeros((1, allowed.size), dtype=np.float32)
    bias[0, list(params.logit_bias)] = list(params.logit_bias.values())
    numbers = {
        name: on_device([getattr(params, name)], np.float32)
        for name in (PENALTIES | FILTERS) - {"top_k"}
    }
    return SamplingRows(
        allowed=on_device(allowed[None], np.bool_),
        top_k=on_device([params.top_k], np.int32),
        logit_bias=on_device(bias, np.float32) if "logit_bias" in transforms else None,
        seeds=on_device(seed_words(params.seed)[None], np.uint32),
        samples=on_device([sample_index], np.int32),
        **numbers,
    )


def first_state(transforms: frozenset[str], *, vocabulary_size: int) -> SamplingState:
    """One row's state before its first choice; rows of a batch are concatenated."""
    is_counted = bool(transforms & PENALTIES)
    shape = (1, vocabulary_size)
    return SamplingState(
        positions=on_device([0], np.int32),
        in_prompt=jnp.zeros(shape, dtype=jnp.bool) if is_counted else None,
        counts=jnp.zeros(shape, dtype=jnp.int32) if is_counted else None,
    )


def _check_fit(params: SamplingParams, allowed: NDArray[np.bool_]) -> None:
    if not allowed.any():
        raise UsageError(
            f"None of the {allowed.size} ids may be chosen, so nothing can be generated: allow"
            " at least one."
        )
    for token in params.logit_bias:
        if token >= allowed.size:
            raise UsageError(
                f"logit_bias names the id {token}, but the vocabulary ends at {allowed.size - 1}."
            )
