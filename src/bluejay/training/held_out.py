"""The loss on text that is never trained on.

Axes: B rows  W window, one more than the predicted positions
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import NDArray

from bluejay.core.errors import DataError
from bluejay.model.config import DecoderConfig
from bluejay.model.decoder import forward
from bluejay.model.params import DecoderParams
from bluejay.nn.losses import cross_entropy
from bluejay.shards.reader import TokenShards


@dataclass(frozen=True, kw_only=True)
class HeldOutLoss:
    """Mean nats per token, and bits per byte of the same text."""

    loss: float
    bits_per_byte: float
    num_tokens: int


def held_out_batches(
    shards: TokenShards, *, rows: int, length: int, num_tokens: int
) -> list[NDArray[np.int32]]:
    """Windows [B, W] evenly spaced over the shards, about `num_tokens` tokens in all.

    The same for every call. Raises DataError if the shards hold less than one window.
    """
    num_windows = (shards.num_tokens - 1) // length
    if num_windows < 1:
        raise DataError(
            f"The held-out shards hold {shards.num_tokens} tokens, too few for one window of "
            f"{length} + 1: hold out more text."
        )
    wanted = max(1, min(num_windows, num_tokens // length))
    chosen = np.unique(np.linspace(0, num_windows - 1, wanted).round().astype(np.int64))
    windows = [shards.read(int(w) * length, int(w) * length + length + 1) for w in chosen]
    # Full batches only, so that one program serves all of them; a few windows may be left over.
    size = min(rows, len(windows))
    full = len(windows) // size * size
    return [np.stack(windows[begin : begin + size]) for begin in range(0, full, size)]


def make_evaluation(
    config: DecoderConfig, batches: list[NDArray[np.int32]], bytes_of_id: NDArray[np.int64]
) -> Callable[[DecoderParams], HeldOutLoss]:
    """A function of parameters that gives their loss on the batches; `bytes_of_id` [V]."""
    run = jax.jit(partial(_total_loss, config=config))
    num_tokens = sum(batch[:, 1:].size for batch in batches)
    num_bytes = int(sum(bytes_of_id[batch[:, 1:]].sum() for batch in batches))

    def evaluate(params: DecoderParams) -> HeldOutLoss:
        total = sum(float(run(params, batch)) for batch in batches)
        bits = total / np.log(2) / max(num_bytes, 1)
        return HeldOutLoss(
            loss=total / num_tokens, bits_per_byte=float(bits), num_tokens=num_tokens
        )

    return evaluate


def _total_loss(
    params: DecoderParams, ids: Int[Array, "B W"], *, config: DecoderConfig
) -> Float[Array, ""]:
    losses, _ = cross_entropy(forward(params, ids[:, :-1], config=config), ids[:, 1:])
    return jnp.sum(losses)
