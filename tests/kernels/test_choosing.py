"""The native choice against the reference in JAX, on every instruction set.

Their exponentials differ in the last bits, so a draw that falls within 1e-5 of the border between
two ids may take either; nothing else may differ.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bluejay.generation.sampling import choose_rows
from bluejay.generation.sampling_params import SamplingParams
from bluejay.generation.sampling_rows import active_transforms, first_state, sampling_row
from bluejay.kernels.library import Library, library

FILTERS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.7, "top_p": 0.95},
    {"temperature": 1.4, "top_k": 40},
    {"top_k": 300, "top_p": 0.5, "min_p": 0.02},
    {"typical_p": 0.8},
    {"temperature": 2.0, "top_k": 1000, "typical_p": 0.5, "min_p": 0.001},
]


def logits_like(kind: str, width: int, rows: int) -> NDArray[np.float32]:
    draw = np.random.default_rng(width).standard_normal((rows, width)).astype(np.float32)
    if kind == "flat":
        return draw * np.float32(1e-3)
    if kind == "ties":
        return np.round(draw)
    return draw * np.float32(40 if kind == "steep" else 3)


def both(
    logits: NDArray[np.float32], values: dict[str, Any], allowed: NDArray[np.bool_]
) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """Ids and log probabilities by the reference and by the kernel; each row another seed."""
    params = SamplingParams(**values)
    transforms = active_transforms(params)
    found = []
    for is_native in (False, True):
        ids, logprobs = [], []
        for seed, row in enumerate(logits):
            choices, _ = choose_rows(
                jnp.asarray(row[None]),
                sampling_row(
                    SamplingParams(**values, seed=seed),
                    allowed=allowed,
                    sample_index=0,
                    transforms=transforms,
                ),
                first_state(transforms, vocabulary_size=row.size),
                transforms=transforms,
                num_alternatives=0,
                is_native=is_native,
            )
            ids.append(int(choices.ids[0]))
            logprobs.append(float(choices.logprobs[0]))
        found.append((np.array(ids, np.int32), np.array(logprobs, np.float32)))
    return found


@pytest.mark.parametrize("kind", ["usual", "flat", "steep", "ties"])
@pytest.mark.parametrize("values", FILTERS, ids=str)
def test_same_ids_as_the_reference(native: Library, kind: str, values: dict[str, Any]) -> None:
    for width in (1, 5, 331, 50257):
        logits = logits_like(kind, width, 4)
        allowed = np.arange(width) % 7 != 3
        (ids, logprobs), (native_ids, native_logprobs) = both(logits, values, allowed)
        np.testing.assert_array_equal(native_ids, ids)
        np.testing.assert_allclose(native_logprobs, logprobs, rtol=1e-6, atol=2e-6)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    row=st.lists(
        st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False)
        | st.sampled_from([0.0, -0.0, 3.0, -np.inf]),
        min_size=1,
        max_size=40,
    ),
    top_k=st.integers(0, 50),
    top_p=st.floats(1 / 1024, 1.0, width=32),
    greedy=st.booleans(),
)
def test_any_logits(row: list[float], top_k: int, top_p: float, greedy: bool) -> None:
    """Removed, huge and equal ones; a row whose every id is removed has no log probability."""
    assert library() is not None
    logits = np.array([row], np.float32)
    values = {"temperature": 0.0 if greedy else 1.0, "top_k": top_k, "top_p": top_p}
    (ids, logprobs), (native_ids, native_logprobs) = both(logits, values, np.ones(len(row), bool))
    if not np.isfinite(logprobs[0]):
        assert not np.isfinite(native_logprobs[0])
        return
    assert native_ids[0] == ids[0]
    np.testing.assert_allclose(native_logprobs, logprobs, rtol=1e-6, atol=2e-6)
