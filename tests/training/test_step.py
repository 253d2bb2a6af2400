"""The step: parts of a batch add up, what is not finite changes nothing, the state is donated."""

import jax
import jax.numpy as jnp
import numpy as np

from bluejay.training.step import TrainState, initial_state, make_step


class Descent:
    """params - 0.1 * gradients: what the step does beside its optimizer."""

    def init(self, params: jax.Array) -> jax.Array:
        return jnp.zeros((), jnp.float32)

    def update(
        self, gradients: jax.Array, state: jax.Array, params: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        return params - 0.1 * gradients, state + 1.0


def loss(params: jax.Array, batch: jax.Array, key: jax.Array) -> tuple[jax.Array, dict]:
    errors = jnp.square(batch @ params - 1.0)
    return jnp.mean(errors), {"loss": jnp.mean(errors)}


def start() -> TrainState:
    return initial_state(jnp.arange(3, dtype=jnp.float32), Descent(), seed=0)


def test_parts_of_a_batch_give_the_gradient_of_the_whole() -> None:
    batch = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    whole, metrics = make_step(loss, Descent())(start(), batch)
    parts, part_metrics = make_step(loss, Descent(), num_parts=4)(start(), batch)
    np.testing.assert_allclose(whole.params, parts.params, rtol=1e-6)
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(metrics[name], part_metrics[name], rtol=1e-6)
    x = np.arange(3) - 0.1 * 2 * batch.T @ (batch @ np.arange(3) - 1) / 8
    np.testing.assert_allclose(whole.params, x, rtol=1e-5)


def test_a_step_that_is_not_finite_changes_nothing_but_the_counters() -> None:
    batch = np.full((8, 3), np.nan, np.float32)
    state, metrics = make_step(loss, Descent())(start(), batch)
    np.testing.assert_array_equal(state.params, np.arange(3))
    assert float(state.optimizer) == 0.0
    assert (int(state.step), int(state.num_skipped), int(metrics["is_skipped"])) == (1, 1, 1)


def test_the_state_is_updated_in_its_own_memory() -> None:
    state = start()
    params = state.params
    pointer = params.unsafe_buffer_pointer()
    batch = np.ones((8, 3), np.float32)
    state, _ = make_step(loss, Descent())(state, batch)
    assert params.is_deleted()
    assert state.params.unsafe_buffer_pointer() == pointer


def test_each_step_and_part_has_a_key_of_its_own() -> None:
    seen = []

    def noisy(params: jax.Array, batch: jax.Array, key: jax.Array) -> tuple[jax.Array, dict]:
        draw = jax.random.uniform(key)
        return jnp.sum(params) * draw, {"loss": draw}

    step = make_step(noisy, Descent(), num_parts=2)
    state = start()
    for _ in range(3):
        state, metrics = step(state, np.ones((4, 3), np.float32))
        seen.append(float(metrics["loss"]))
    assert len(set(seen)) == 3
