"""One step of each chain against numbers worked out by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluejay.core.errors import UsageError
from bluejay.model.params import named_leaves, stack_blocks
from bluejay.model.presets import preset
from bluejay.model.specs import decoder_specs, initialize, stacked_specs
from bluejay.training.optimizer import (
    Optimizer,
    OptimizerConfig,
    dimension_numbers,
    is_block_matrix,
)
from bluejay.training.schedule import ScheduleConfig

CONFIG = preset("gptj-nano")
FLAT = ScheduleConfig(shape="stable", warmup_steps=0, decay_steps=0, total_steps=10)


def setting(seed: int = 0) -> tuple[object, object, object]:
    specs = decoder_specs(CONFIG)
    params = stack_blocks(initialize(specs, jax.random.key(seed)))
    leaves, structure = jax.tree.flatten(params)
    drawn = [
        jax.random.normal(jax.random.fold_in(jax.random.key(1), i), leaf.shape)
        for i, leaf in enumerate(leaves)
    ]
    return stacked_specs(specs), params, jax.tree.unflatten(structure, drawn)


def test_two_steps_of_the_2021_chain() -> None:
    """Clip to norm 1, Adam (0.9, 0.999, 1e-8), decay 0.1 on matrices only, times minus the rate:
    build_model.py of mesh-transformer-jax, written out in float64."""
    specs, params, gradients = setting()
    optimizer = Optimizer(OptimizerConfig(), FLAT, specs)
    state = optimizer.init(params)
    expected = {k: np.asarray(v, np.float64) for k, v in named_leaves(params).items()}
    first = dict.fromkeys(expected, 0.0)
    second = dict.fromkeys(expected, 0.0)
    for step in (0, 1):
        scaled = jax.tree.map(lambda g, s=step: g * (1.0 + s), gradients)
        params, state = optimizer.update(scaled, state, params, jnp.int32(step))
        raw = {k: np.asarray(v, np.float64) for k, v in named_leaves(scaled).items()}
        norm = np.sqrt(sum((g**2).sum() for g in raw.values()))
        assert norm > 1.0
        for name, gradient in raw.items():
            g = gradient / norm
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.999 * second[name] + 0.001 * g**2
            m = first[name] / (1 - 0.9 ** (step + 1))
            v = second[name] / (1 - 0.999 ** (step + 1))
            is_matrix = not name.endswith(("bias", "scale"))
            decay = 0.1 * expected[name] if is_matrix else 0.0
            expected[name] = expected[name] - 1.2e-4 * (m / (np.sqrt(v) + 1e-8) + decay)
    for name, leaf in named_leaves(params).items():
        np.testing.assert_allclose(leaf, expected[name], rtol=2e-6, atol=2e-8, err_msg=name)


def newton_schulz(g: np.ndarray) -> np.ndarray:
    """Jordan et al. 2024: five steps of the quintic, on the matrix with the fewer rows."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g / (np.linalg.norm(g) + 1e-8)
    x = x.T if (is_tall := x.shape[0] > x.shape[1]) else x
    for _ in range(5):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return x.T if is_tall else x


@pytest.mark.parametrize(("part", "name"), [("attention", "query"), ("attention", "out")])
def test_muon_orthogonalizes_each_layers_matrix(part: str, name: str) -> None:
    specs, params, gradients = setting()
    config = OptimizerConfig(kind="muon", matrix_learning_rate=0.02, clip_norm=1e9, weight_decay=0)
    optimizer = Optimizer(config, FLAT, specs)
    new, _ = optimizer.update(gradients, optimizer.init(params), params, jnp.int32(0))
    before = getattr(getattr(params.blocks, part), name)
    after = getattr(getattr(new.blocks, part), name)
    raw = getattr(getattr(gradients.blocks, part), name)
    for layer in range(CONFIG.num_layers):
        rows = CONFIG.embed_dim  # both are square here: 64 inputs, 4 heads of 16
        gradient = np.asarray(raw[layer], np.float64).reshape(rows, rows)
        momentum = 0.05 * gradient  # the first step of a mean with 0.95
        nesterov = 0.95 * momentum / (1 - 0.95**2) + 0.05 * gradient / (1 - 0.95)
        step = np.asarray(before[layer] - after[layer], np.float64).reshape(rows, rows)
        np.testing.assert_allclose(step, 0.02 * newton_schulz(nesterov), atol=2e-5)
        values = np.linalg.svd(step / 0.02, compute_uv=False)
        assert values.max() < 1.3
        assert np.median(values) > 0.6


def test_muon_leaves_embedding_head_and_vectors_to_adam() -> None:
    specs = named_leaves(stacked_specs(decoder_specs(CONFIG)))
    matrices = {name for name, spec in specs.items() if is_block_matrix(spec)}
    assert matrices == {
        f"blocks.{part}"
        for part in (
            "attention.query",
            "attention.key",
            "attention.value",
            "attention.out",
            "feed_forward.up",
            "feed_forward.down",
        )
    }
    query = dimension_numbers(specs["blocks.attention.query"])
    assert (query.reduction_axis, query.output_axis) == ((3,), (1, 2))
    out = dimension_numbers(specs["blocks.attention.out"])
    assert (out.reduction_axis, out.output_axis) == ((2, 3), (1,))


@pytest.mark.parametrize(
    ("field", "value"), [("learning_rate", 0.0), ("b2", 1.0), ("weight_decay", -1.0), ("kind", "x")]
)
def test_values_that_cannot_be_are_refused(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=r"must|one of"):
        OptimizerConfig(**{field: value})
