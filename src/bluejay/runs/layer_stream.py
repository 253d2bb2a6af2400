"""A decoder run one layer at a time over a whole text, with what its products were given.

So a model larger than memory can be calibrated and compared: one layer is there at a time.

Axes: B rows, 1  T positions  D embed  V vocabulary  R rows of a product  C parts  W inputs of one
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from numpy.typing import NDArray

from bluejay.model.config import DecoderConfig
from bluejay.model.decoder import logits, run_layer
from bluejay.model.params import BlockParams, DecoderParams, named_leaves
from bluejay.nn.contract import Weight, observing_contractions

LONGEST_WINDOW = 512
# Second moments of more inputs are taken in parts: 4096 squared is 67 MB, and inverted in seconds.
_LARGEST_PART = 4096
_BETWEEN = "|"
_NEVER = -1e30  # in place of -inf, whose differences are no numbers


@dataclass(frozen=True, kw_only=True)
class Window:
    """T + 1 ids, of which the first is only read; `is_text` [T] marks the others that count."""

    ids: NDArray[np.int32]
    is_text: NDArray[np.bool_]


def windows_of(ids: Sequence[int], *, size: int, most: int, spread: bool) -> list[Window]:
    """Windows of `size` predicted ids, each beginning with the last id of the one before.

    At most `most` ids in all: from the beginning, or `spread` over all of the text. The last one
    is filled up with zeros that do not count.
    """
    count = max(1, math.ceil((len(ids) - 1) / size))
    wanted = max(1, min(count, most // size))
    chosen = np.linspace(0, count - 1, wanted).round().astype(int) if spread else range(wanted)
    found = []
    for number in chosen:
        piece = np.asarray(ids[number * size : number * size + size + 1], np.int32)
        padded = np.zeros(size + 1, np.int32)
        padded[: len(piece)] = piece
        found.append(Window(ids=padded, is_text=np.arange(1, size + 1) < len(piece)))
    return found


@partial(jax.jit, static_argnames="config")
def run_one_layer(
    layer: BlockParams, x: Float[Array, "B T D"], *, config: DecoderConfig
) -> Float[Array, "B T D"]:
    """The residual stream behind the layer."""
    return run_layer(layer, x, config=config)


@partial(jax.jit, static_argnames="config")
def observe_layer(
    layer: BlockParams, x: Float[Array, "B T D"], *, config: DecoderConfig
) -> dict[str, Float[Array, "C W W"]]:
    """Sums over rows of the second moments of what each weight of the layer is multiplied with.

    Weights that share their input share an entry, whose key joins their paths (`names_of`).
    """
    paths = {id(leaf): path for path, leaf in named_leaves(layer).items()}
    seen: dict[int, tuple[Array, list[str]]] = {}

    def observe(inputs: Array, weight: Weight) -> None:
        seen.setdefault(id(inputs), (inputs, []))[1].append(paths[id(weight)])

    with observing_contractions(observe):
        run_layer(layer, x, config=config)
    return {
        _BETWEEN.join(names): _second_moments(inputs, layer, names[0])
        for inputs, names in seen.values()
    }


def names_of(key: str) -> list[str]:
    """The paths of the weights, within their layer, that an entry of `observe_layer` is of."""
    return key.split(_BETWEEN)


def _second_moments(inputs: Array, layer: BlockParams, path: str) -> Float[Array, "C W W"]:
    # The output projection alone is summed over two axes, heads and their width.
    inner = 2 if path.endswith("attention.out") else 1
    width = math.prod(inputs.shape[inputs.ndim - inner :])
    parts = -(-width // _LARGEST_PART)
    split = inputs.astype(jnp.float32).reshape(-1, parts, width // parts)
    return jnp.einsum("rcw,rcv->cwv", split, split, precision=jax.lax.Precision.HIGHEST)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two decoders on the same ids: sums over the positions that count, in nats."""

    nats_before: float = 0.0
    nats_after: float = 0.0
    divergence: float = 0.0
    num_agreeing: int = 0
    num_tokens: int = 0

    def plus(self, sums: Mapping[str, Array]) -> "Comparison":
        """With one more window."""
        return Comparison(
            nats_before=self.nats_before + float(sums["nats_before"]),
            nats_after=self.nats_after + float(sums["nats_after"]),
            divergence=self.divergence + float(sums["divergence"]),
            num_agreeing=self.num_agreeing + int(sums["num_agreeing"]),
            num_tokens=self.num_tokens + int(sums["num_tokens"]),
        )


@partial(jax.jit, static_argnames="config")
def compare_heads(
    before: tuple[DecoderParams, Float[Array, "B T D"]],
    after: tuple[DecoderParams, Float[Array, "B T D"]],
    targets: Int[Array, "T"],
    counts: Bool[Array, "T"],
    allowed: Bool[Array, "V"],
    *,
    config: DecoderConfig,
) -> dict[str, Array]:
    """What `Comparison` sums up, of one window; parameters need no blocks."""

    def scores(params: DecoderParams, x: Array) -> Array:
        raw = logits(params, x, config=config)[0].astype(jnp.float32)
        return jax.nn.log_softmax(jnp.where(allowed[None, :], raw, _NEVER), axis=-1)

    old, new = scores(*before), scores(*after)

    def total(values: Array) -> Array:
        return jnp.sum(jnp.where(counts, values, jnp.zeros_like(values)))

    def chosen(values: Array) -> Array:
        return -jnp.take_along_axis(values, targets[:, None], axis=-1)[:, 0]

    agreeing = jnp.argmax(old, axis=-1) == jnp.argmax(new, axis=-1)
    return {
        "nats_before": total(chosen(old)),
        "nats_after": total(chosen(new)),
        "divergence": total(jnp.sum(jnp.exp(old) * (old - new), axis=-1)),
        "num_agreeing": total(agreeing.astype(jnp.int32)),
        "num_tokens": total(jnp.ones_like(targets)),
    }
