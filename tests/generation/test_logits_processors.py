"""Every transform against transformers' own scores, and against brute force in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from bluejay.generation import logits_processors as processors
from golden_files import WarperReference, load_warper_references

REFERENCES = load_warper_references()
# In the order in which `generate` builds them.
TRANSFORMS = {
    "RepetitionPenaltyLogitsProcessor": "repetition_penalty",
    "TemperatureLogitsWarper": "temperature",
    "TopKLogitsWarper": "top_k",
    "TopPLogitsWarper": "top_p",
    "MinPLogitsWarper": "min_p",
    "TypicalLogitsWarper": "typical_p",
}
FILTERS = {
    "temperature": processors.scale_temperature,
    "top_k": processors.keep_top_k,
    "top_p": processors.keep_top_p,
    "min_p": processors.keep_min_p,
    "typical_p": processors.keep_typical,
}
VOCABULARY = 300
SHARES = st.floats(0.01, 0.9999)
examples = settings(deadline=None, max_examples=60)
compiled = {name: jax.jit(function) for name, function in FILTERS.items()}


@st.composite
def draw_logits(draw: st.DrawFn) -> NDArray[np.float32]:
    """Two rows from nearly flat to nearly certain, with many ties or none."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scale = draw(st.sampled_from([0.0, 0.05, 1.0, 3.0, 10.0, 40.0]))
    normal = rng.standard_normal((2, VOCABULARY)) * scale
    steps = draw(st.sampled_from([None, 1, 16]))
    return (normal if steps is None else np.round(normal * steps) / steps).astype(np.float32)


def apply(name: str, scores: NDArray[np.float32], value: float) -> NDArray[np.float32]:
    dtype = jnp.int32 if name == "top_k" else jnp.float32
    parameter = jnp.full(len(scores), value, dtype=dtype)
    return np.asarray(compiled[name](jnp.asarray(scores), parameter))


def ranking(row: NDArray[np.float32]) -> NDArray[np.intp]:
    """Ids by falling score, equal ones by rising id."""
    return np.argsort(-row, kind="stable")


def probabilities(row: NDArray[np.float32]) -> NDArray[np.float64]:
    parts = np.exp(row.astype(np.float64) - row.max())
    return parts / parts.sum()


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda r: ",".join(r.parameters))
def test_scores_equal_transformers(reference: WarperReference) -> None:
    scores = reference.logits
    for name in (TRANSFORMS[warper] for warper in reference.order):
        value = reference.parameters[name]
        if name == "repetition_penalty":
            seen = np.zeros(scores.shape, dtype=bool)
            np.put_along_axis(seen, reference.previous_ids.astype(np.int64), True, axis=1)
            penalty = jnp.full(len(scores), value, dtype=jnp.float32)
            scores = np.asarray(
                processors.penalize_repetition(jnp.asarray(scores), jnp.asarray(seen), penalty)
            )
        else:
            scores = apply(name, scores, value)
    np.testing.assert_array_equal(scores, reference.scores)


def test_the_order_is_that_of_transformers() -> None:
    for reference in REFERENCES:
        assert reference.order == [name for name in TRANSFORMS if name in reference.order]


@examples
@given(scores=draw_logits(), k=st.integers(1, VOCABULARY + 50))
def test_top_k_keeps_exactly_the_first_k(scores: NDArray[np.float32], k: int) -> None:
    kept = np.isfinite(apply("top_k", scores, k))
    for row, kept_of_row in zip(scores, kept, strict=True):
        expected = np.sort(ranking(row)[:k])
        np.testing.assert_array_equal(np.flatnonzero(kept_of_row), expected)


@examples
@given(scores=draw_logits(), p=SHARES)
def test_top_p_keeps_the_smallest_set_that_reaches_p(scores: NDArray[np.float32], p: float) -> None:
    kept = np.isfinite(apply("top_p", scores, p))
    for row, kept_of_row in zip(scores, kept, strict=True):
        ranked, num_kept = ranking(row), kept_of_row.sum()
        np.testing.assert_array_equal(np.flatnonzero(kept_of_row), np.sort(ranked[:num_kept]))
        reached = probabilities(row)[ranked].cumsum()
        assert reached[num_kept - 1] >= p - 2e-7
        assert num_kept == 1 or reached[num_kept - 2] < p + 2e-7


@examples
@given(scores=draw_logits(), p=st.floats(0.001, 0.99))
def test_min_p_keeps_what_is_probable_next_to_the_best(
    scores: NDArray[np.float32], p: float
) -> None:
    kept = np.isfinite(apply("min_p", scores, p))
    for row, kept_of_row in zip(scores, kept, strict=True):
        relative = probabilities(row) / probabilities(row).max()
        assert (kept_of_row[relative > p * 1.00001]).all()
        assert not (kept_of_row[relative < p * 0.99999]).any()


@examples
@given(scores=draw_logits(), p=SHARES)
def test_typical_keeps_the_nearest_to_the_entropy(scores: NDArray[np.float32], p: float) -> None:
    kept = np.isfinite(apply("typical_p", scores, p))
    for row, kept_of_row in zip(scores, kept, strict=True):
        shares = probabilities(row)
        logs = row.astype(np.float64) - row.max()
        logs -= np.log(np.exp(logs).sum())
        distance = np.abs(-logs - (-(shares * logs)).sum())
        farthest = distance[kept_of_row].max()
        assert kept_of_row[distance < farthest - 1e-5].all()
        assert shares[kept_of_row].sum() >= p - 1e-6
        assert shares[distance < farthest - 1e-5].sum() < p + 1e-6


@examples
@given(
    scores=draw_logits(),
    share_removed=st.sampled_from([0.0, 0.5, 0.99]),
    temperature=st.floats(0.05, 20),
    k=st.integers(0, 400),
    shares=st.tuples(SHARES, SHARES, SHARES),
)
def test_all_filters_together_leave_one_id_and_revive_none(
    scores: NDArray[np.float32],
    share_removed: float,
    temperature: float,
    k: int,
    shares: tuple[float, float, float],
) -> None:
    removed = np.random.default_rng(k).random(scores.shape) < share_removed
    removed[:, 17] = False
    scores = np.where(removed, np.float32(-np.inf), scores)
    values = dict(zip(FILTERS, (temperature, k, *shares), strict=True))
    for name, value in values.items():
        scores = apply(name, scores, value)
    assert np.isfinite(scores).any(axis=1).all()
    assert not np.isfinite(scores[removed]).any()


@pytest.mark.parametrize(
    ("name", "neutral"),
    [
        ("temperature", 1),
        ("temperature", 0),
        ("top_k", 0),
        ("top_p", 1),
        ("min_p", 0),
        ("typical_p", 1),
    ],
)
@examples
@given(scores=draw_logits())
def test_neutral_values_change_nothing(
    scores: NDArray[np.float32], name: str, neutral: float
) -> None:
    scores[0, 3] = -np.inf
    assert apply(name, scores, neutral).tobytes() == scores.tobytes()


def test_neutral_penalties_and_bias_change_nothing() -> None:
    scores = jnp.asarray(REFERENCES[0].logits)
    one, zero = jnp.ones(6), jnp.zeros(6)
    counts = jnp.arange(scores.size, dtype=jnp.int32).reshape(scores.shape) % 3
    for result in (
        processors.penalize_repetition(scores, counts > 0, one),
        processors.penalize_presence(scores, counts, zero),
        processors.penalize_frequency(scores, counts, zero),
        processors.add_logit_bias(scores, jnp.zeros_like(scores)),
    ):
        np.testing.assert_array_equal(result, scores)


def test_presence_and_frequency_follow_the_published_formula() -> None:
    """mu[j] -> mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence."""
    scores = jnp.array([[2.0, 1.0, -1.0, -jnp.inf], [2.0, 1.0, -1.0, 0.0]])
    counts = jnp.array([[0, 1, 4, 2], [3, 0, 0, 1]], dtype=jnp.int32)
    presence = processors.penalize_presence(scores, counts, jnp.array([0.5, -2.0]))
    np.testing.assert_array_equal(presence, [[2, 0.5, -1.5, -np.inf], [4, 1, -1, 2]])
    frequency = processors.penalize_frequency(scores, counts, jnp.array([0.25, 2.0]))
    np.testing.assert_array_equal(frequency, [[2, 0.75, -2, -np.inf], [-4, 1, -1, -2]])


def test_repetition_penalty_counts_an_id_once_and_knows_the_sign() -> None:
    scores = jnp.array([[2.0, -2.0, 3.0, 0.0]])
    seen = jnp.array([[True, True, False, True]])
    penalized = processors.penalize_repetition(scores, seen, jnp.array([2.0]))
    np.testing.assert_array_equal(penalized, [[1, -4, 3, 0]])


@pytest.mark.parametrize("p", [0.5, 0.95, 0.9999])
def test_filters_hold_where_no_few_leaders_decide(p: float) -> None:
    """Nearly flat distributions over a real vocabulary, where thousands of ids are kept."""
    rng = np.random.default_rng(5)
    scores = (rng.standard_normal((1, 50400)) * 0.3).astype(np.float32)
    ranked = ranking(scores[0])
    kept = np.flatnonzero(np.isfinite(apply("top_p", scores, p))[0])
    np.testing.assert_array_equal(kept, np.sort(ranked[: len(kept)]))
    reached = probabilities(scores[0])[ranked].cumsum()
    # 50,400 roundings to 2**-30 each, and one of p.
    assert reached[len(kept) - 2] - 5e-7 < p < reached[len(kept) - 1] + 5e-7
    for k in (256, 257, 20000):
        kept = np.flatnonzero(np.isfinite(apply("top_k", scores, k))[0])
        np.testing.assert_array_equal(kept, np.sort(ranked[:k]))
