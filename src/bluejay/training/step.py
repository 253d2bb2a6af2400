"""The step: (state, batch) -> (state, metrics), pure, jitted, its state donated.

It knows neither text nor decoders: parameters are any tree, the loss any function of
(params, batch, key), the batch any tree of arrays.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import register_dataclass
from jaxtyping import Array

Metrics = dict[str, Array]
Loss = Callable[[Any, Any, Any], tuple[Array, Metrics]]
Step = Callable[["TrainState", Any], tuple["TrainState", Metrics]]


class OptimizerLike(Protocol):
    """What `bluejay.training.optimizer.Optimizer` offers."""

    def init(self, params: Any) -> Any: ...

    def update(self, gradients: Any, state: Any, params: Any, step: Array) -> tuple[Any, Any]: ...


@register_dataclass
@dataclass(frozen=True, kw_only=True)
class TrainState:
    """Everything that the next step depends on, the batch aside.

    `step` counts finished steps, `num_skipped` those whose gradients were not finite and changed
    nothing but the counters.
    """

    step: Any  # int32 scalar
    num_skipped: Any  # int32 scalar
    key: Any  # key data, uint32 [2]
    params: Any
    optimizer: Any


def initial_state(params: Any, optimizer: OptimizerLike, *, seed: int) -> TrainState:
    """The state before the first step."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        num_skipped=jnp.zeros((), jnp.int32),
        key=jax.random.key_data(jax.random.key(seed)),
        params=params,
        optimizer=optimizer.init(params),
    )


def make_step(loss: Loss, optimizer: OptimizerLike, *, num_parts: int = 1) -> Step:
    """The jitted step. The batch is cut along its first axis into `num_parts`, whose gradients are
    averaged in float32 before the update.

    Metrics: `loss` and whatever the loss reports, averaged, `gradient_norm` before clipping, and
    `is_skipped`: an update that is not finite leaves parameters and optimizer as they were.
    """

    def step(state: TrainState, batch: Any) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        gradients, metrics = _gradients(loss, state.params, batch, key, num_parts)
        norm = optax.tree.norm(gradients)
        is_finite = jnp.isfinite(norm)
        params, optimizer_state = optimizer.update(
            gradients, state.optimizer, state.params, state.step
        )
        kept = (state.params, state.optimizer)
        params, optimizer_state = jax.tree.map(
            lambda new, old: jnp.where(is_finite, new, old), (params, optimizer_state), kept
        )
        skipped = jnp.logical_not(is_finite).astype(jnp.int32)
        new_state = TrainState(
            step=state.step + 1,
            num_skipped=state.num_skipped + skipped,
            key=state.key,
            params=params,
            optimizer=optimizer_state,
        )
        return new_state, metrics | {"gradient_norm": norm, "is_skipped": skipped}

    return jax.jit(step, donate_argnums=0)


def _gradients(
    loss: Loss, params: Any, batch: Any, key: Any, num_parts: int
) -> tuple[Any, Metrics]:
    gradient = jax.grad(loss, has_aux=True)
    if num_parts == 1:
        whole: tuple[Any, Metrics] = gradient(params, batch, key)
        return whole
    parts = jax.tree.map(lambda x: x.reshape(num_parts, -1, *x.shape[1:]), batch)
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params)

    def add(total: Any, numbered: tuple[Array, Any]) -> tuple[Any, Metrics]:
        number, part = numbered
        found, metrics = gradient(params, part, jax.random.fold_in(key, number))
        return jax.tree.map(lambda t, g: t + g.astype(jnp.float32), total, found), metrics

    total, metrics = jax.lax.scan(add, zeros, (jnp.arange(num_parts), parts))
    mean = jax.tree.map(lambda t, p: (t / num_parts).astype(p.dtype), total, params)
    return mean, jax.tree.map(lambda m: jnp.mean(m, axis=0), metrics)
