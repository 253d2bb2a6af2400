"""Gradients equal those of transformers, and the slope of the loss in double precision."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array
from numpy.typing import NDArray

from bluejay.checkpoints.model_files import open_model
from bluejay.model.config import DecoderConfig, PositionConfig
from bluejay.model.params import (
    DecoderParams,
    map_named,
    named_leaves,
    stack_blocks,
    unstack_blocks,
)
from bluejay.model.presets import GPT2_BLOCK, LLAMA_BLOCK, NEOX_BLOCK, gptj_config
from bluejay.nn import attention
from bluejay.runs.loading import load_params
from bluejay.training.loss import next_token_loss
from golden_files import GoldenCase, load_case, load_gradient_reference, write_hf_folder
from small_models import drawn_params

Values = dict[str, NDArray[np.floating]]

# transformers' own fp32 gradients lie up to 1.9e-8 from the same in double precision, where each
# tensor's largest gradient is between 2e-3 and 7e-2. Ours lie up to 3.0e-8 from transformers'.
TOLERANCE = 1e-7
LOSS_TOLERANCE = 1e-6

GPTJ = replace(gptj_config(2, 32, 4, rotary_dim=4, vocab_size=61), context_length=24)
NEOX = replace(GPTJ, position=PositionConfig(kind="rotary_half", rotary_dim=2), variant=NEOX_BLOCK)
CONFIGS = {
    "gptj": GPTJ,
    "gpt-neox-parallel": NEOX,
    "gpt-neox-sequential": replace(NEOX, variant=replace(NEOX_BLOCK, arrangement="sequential")),
    "gpt2": replace(GPTJ, position=PositionConfig(kind="learned"), variant=GPT2_BLOCK),
    "llama-grouped": replace(
        GPTJ,
        num_kv_heads=2,
        position=PositionConfig(kind="rotary_half", rotary_dim=8),
        variant=LLAMA_BLOCK,
    ),
}
NUM_DIRECTIONS = 4
# Directions have length 1, and slopes are about 1e-2. They differ by 1.4e-12 at most and by less at
# twice the step: all that is left is the rounding of a loss near 5, about 1e-15 / STEP.
STEP = 1e-3
SLOPE_TOLERANCE = 1e-11
# float32 differs by 1.0e-6 of the largest gradient at most; other processors sum in other orders.
NARROW_TOLERANCE = 1e-5


def loss_and_gradient(
    params: DecoderParams, ids: NDArray[np.int32], config: DecoderConfig, *, scan: bool
) -> tuple[float, Values]:
    """The loss, and its gradient by native name whether or not the blocks were stacked."""
    objective = partial(next_token_loss, weights=None, config=config)
    run = jax.jit(jax.value_and_grad(objective, has_aux=True))
    (loss, _), gradient = run(stack_blocks(params) if scan else params, jnp.asarray(ids))
    found = named_leaves(unstack_blocks(gradient))
    return float(loss), {name: np.asarray(x) for name, x in found.items()}


def largest_difference(found: Values, expected: Values) -> dict[str, float]:
    assert found.keys() == expected.keys()
    return {name: float(np.abs(found[name] - expected[name]).max()) for name in expected}


@pytest.fixture(scope="module")
def case() -> GoldenCase:
    return load_case(load_gradient_reference().case)


@pytest.mark.parametrize("scan", [False, True], ids=["unstacked", "stacked"])
def test_loss_and_gradients_equal_transformers(
    case: GoldenCase, scan: bool, tmp_path: Path
) -> None:
    reference = load_gradient_reference()
    files = open_model(write_hf_folder(case, tmp_path / "hf"))
    loss, found = loss_and_gradient(load_params(files), case.input_ids, files.config, scan=scan)
    assert loss == pytest.approx(reference.loss, rel=LOSS_TOLERANCE)

    # A gradient has its tensor's name and layout, so it is loaded as the tensor is.
    named = replace(case, tensors=reference.gradients)
    tree = load_params(open_model(write_hf_folder(named, tmp_path / "gradients")))
    expected = {name: np.asarray(x) for name, x in named_leaves(tree).items()}
    differences = largest_difference(found, expected)
    scales = [float(np.abs(x).max()) for x in expected.values()]
    print(
        f"loss {loss:.7f} and {reference.loss:.7f}, largest difference of a gradient "
        f"{max(differences.values()):.1e}, tensors' largest {min(scales):.1e} to {max(scales):.1e}"
    )
    assert min(scales) > 1e4 * TOLERANCE
    assert {name: x for name, x in differences.items() if x > TOLERANCE} == {}


@contextmanager
def double_precision() -> Iterator[None]:
    """What the decoder computes in float32, it computes in float64."""
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(True):
        patch.setattr(jnp, "float32", jnp.float64)
        patch.setattr(attention, "_MASKED", np.finfo(np.float64).min)
        yield


def random_ids(config: DecoderConfig) -> NDArray[np.int32]:
    shape = (2, config.context_length)
    return np.random.default_rng(3).integers(0, config.vocab_size, shape, dtype=np.int32)


def arrays(values: Values) -> Callable[[str, object], Array]:
    return lambda path, _: jnp.asarray(values[path])


def slope(loss: Callable[[Values], float], at: Values, direction: Values) -> float:
    """The derivative of the loss along a direction by central differences of fourth order."""

    def moved(distance: float) -> float:
        return loss({path: x + distance * direction[path] for path, x in at.items()})

    near, far = moved(STEP) - moved(-STEP), moved(2 * STEP) - moved(-2 * STEP)
    return (8 * near - far) / (12 * STEP)


@pytest.mark.parametrize("name", CONFIGS)
def test_gradient_is_the_slope_of_the_loss(name: str) -> None:
    config, ids = CONFIGS[name], random_ids(CONFIGS[name])
    tree = drawn_params(config)
    at = {path: np.asarray(x, np.float64) for path, x in named_leaves(tree).items()}
    count = sum(x.size for x in at.values())
    _, narrow = loss_and_gradient(tree, ids, config, scan=True)
    with double_precision():
        wide_tree = map_named(arrays(at), tree)
        _, gradient = loss_and_gradient(wide_tree, ids, config, scan=False)
        run = jax.jit(partial(next_token_loss, weights=None, config=config))

        def loss(values: Values) -> float:
            return float(run(map_named(arrays(values), tree), jnp.asarray(ids))[0])

        rng = np.random.default_rng(5)
        for _ in range(NUM_DIRECTIONS):
            direction = {path: rng.standard_normal(x.shape) / count**0.5 for path, x in at.items()}
            expected = sum((gradient[path] * direction[path]).sum() for path in at)
            found = slope(loss, at, direction)
            print(f"{name}: slope {found:.12f} differs by {abs(found - expected):.1e}")
            assert abs(found - expected) <= SLOPE_TOLERANCE
    largest = max(largest_difference(narrow, gradient).values())
    scale = max(np.abs(x).max() for x in gradient.values())
    print(f"{name}: float32 differs by {largest:.1e} at a scale of {scale:.2f}")
    assert all(x.dtype == np.float64 for x in gradient.values())
    assert largest <= NARROW_TOLERANCE * scale
