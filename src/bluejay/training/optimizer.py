"""Optimizers: the 2021 recipe's chain, and Muon for matrices; optax underneath."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import jax
import optax
from jaxtyping import Array
from optax.contrib import MuonDimensionNumbers, scale_by_muon

from bluejay.core.errors import UsageError
from bluejay.model.params import DecoderParams, map_named
from bluejay.model.specs import ParamSpec, decay_mask
from bluejay.training.schedule import ScheduleConfig, factor

Kind = Literal["adamw", "muon"]


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How gradients become updates; the defaults are GPT-J's 2021 recipe.

    `muon` orthogonalizes the momentum of the blocks' matrices (Jordan et al. 2024), whose learning
    rate is `matrix_learning_rate`; embedding, head, norms and biases stay with Adam.
    """

    kind: Kind = "adamw"
    learning_rate: float = 1.2e-4
    matrix_learning_rate: float = 0.02
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    momentum: float = 0.95
    weight_decay: float = 0.1
    clip_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise UsageError(f"The optimizer is one of {get_args(Kind)}, not {self.kind!r}.")
        for name in ("learning_rate", "matrix_learning_rate", "eps", "clip_norm"):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise UsageError(f"{name} must be above 0, not {getattr(self, name)}.")
        for name in ("b1", "b2", "momentum"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UsageError(f"{name} must be at least 0 and below 1.")
        if self.weight_decay < 0.0:
            raise UsageError(f"weight_decay must be 0 or more, not {self.weight_decay}.")


class Optimizer:
    """`init` and `update` over one tree of parameters, traced outside strict promotion.

    optax promotes types silently in its Adam and Muon; that is confined to these two calls.
    """

    def __init__(self, config: OptimizerConfig, schedule: ScheduleConfig, specs: Any) -> None:
        self._schedule = schedule
        chain = _adamw(config, specs) if config.kind == "adamw" else _muon(config, specs)
        self._chain = optax.chain(optax.clip_by_global_norm(config.clip_norm), chain)

    def init(self, params: Any) -> Any:
        """The state before the first step."""
        with _relaxed():
            return self._chain.init(params)

    def update(self, gradients: Any, state: Any, params: Any, step: Array) -> tuple[Any, Any]:
        """(new parameters, new state) of one step, counted from 0."""
        with _relaxed():
            updates, state = self._chain.update(gradients, state, params)
            scale = -factor(self._schedule, step)
            new = jax.tree.map(lambda p, u: p + (scale * u).astype(p.dtype), params, updates)
        return new, state


@contextmanager
def _relaxed() -> Iterator[None]:
    """Standard type and rank promotion inside the block."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _adamw(config: OptimizerConfig, specs: Any) -> optax.GradientTransformation:
    """Adam, then weight decay that the learning rate scales, as in build_model.py of 2021."""
    return optax.chain(
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.add_decayed_weights(config.weight_decay, mask=decay_mask(specs)),
        optax.scale(config.learning_rate),
    )


def _muon(config: OptimizerConfig, specs: Any) -> optax.GradientTransformation:
    labels = _map(lambda spec: "matrix" if is_block_matrix(spec) else "other", specs)
    numbers = _map(
        lambda spec: dimension_numbers(spec) if is_block_matrix(spec) else optax.MaskedNode(), specs
    )
    matrices = optax.chain(
        scale_by_muon(beta=config.momentum, weight_dimension_numbers=numbers),
        optax.add_decayed_weights(config.weight_decay),
        optax.scale(config.matrix_learning_rate),
    )
    others = optax.chain(
        optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps),
        optax.scale(config.learning_rate),
    )
    return optax.partition({"matrix": matrices, "other": others}, labels)


def is_block_matrix(spec: ParamSpec) -> bool:
    """Whether a parameter is a matrix between hidden axes: neither embedding, head nor vector."""
    return spec.decay and not {"vocab", "context"} & set(spec.axes)


def dimension_numbers(spec: ParamSpec) -> MuonDimensionNumbers:
    """Which axes of a matrix are inputs and which outputs; layers are orthogonalized one by one."""
    rank, num_inputs = len(spec.axes), spec.num_inputs
    first = int(spec.axes[0] == "layers")
    return MuonDimensionNumbers(
        reduction_axis=tuple(range(rank - num_inputs, rank)),
        output_axis=tuple(range(first, rank - num_inputs)),
    )


def _map(function: Any, specs: DecoderParams) -> DecoderParams:
    return map_named(lambda _, spec: function(spec), specs)
