"""A decoder for several devices, each of which has as many heads, units and ids as any other.

Where they do not divide, zeros fill them up. Such a head gives values of zero, such a unit of the
feed-forward the activation of zero, which is zero; both meet weights of zero on their way out. The
logits of such ids are cut off. Key/value heads of which there are fewer than devices are repeated,
each for a part of the queries that share it. What the decoder computes stays the same.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluejay.core.errors import UsageError
from bluejay.model.config import DecoderConfig
from bluejay.model.params import DecoderParams
from bluejay.model.specs import ParamSpec, decoder_specs


@dataclass(frozen=True, kw_only=True)
class Partition:
    """The decoder as programs run it, how often each key/value head is in it, and the parameters
    that the devices hold, which may have more ids than it."""

    config: DecoderConfig
    kv_copies: int
    specs: DecoderParams

    def fitted(self, values: NDArray[Any], spec: ParamSpec, target: ParamSpec) -> NDArray[Any]:
        """A parameter of the decoder as it is stored, in the shape of this one."""
        if values.shape == target.shape:
            return values
        if self.kv_copies > 1 and "kv_heads" in spec.axes:
            values = np.repeat(values, self.kv_copies, axis=spec.axes.index("kv_heads"))
        missing = [(0, size - own) for size, own in zip(target.shape, values.shape, strict=True)]
        return np.pad(values, missing)


def partition(config: DecoderConfig, num_devices: int) -> Partition:
    """The decoder for so many devices. UsageError if half of them or more would hold zeros."""
    found = _partition(config, num_devices)
    if found is None:
        fitting = max(n for n in range(1, num_devices) if _partition(config, n) is not None)
        raise UsageError(
            f"The model has {config.num_heads} query and {config.num_kv_heads} key/value heads,"
            f" too few for {num_devices} devices: choose model={fitting}."
        )
    return found


def _partition(config: DecoderConfig, num_devices: int) -> Partition | None:
    kv_heads, group = config.num_kv_heads, config.num_heads // config.num_kv_heads
    copies = max(n for n in range(1, group + 1) if n == 1 or _can_copy(n, config, num_devices))
    fitted = _multiple(kv_heads * copies, num_devices)
    if fitted >= 2 * kv_heads * copies:
        return None
    larger = replace(
        config,
        num_heads=fitted * (group // copies),
        num_kv_heads=fitted,
        feed_forward_dim=_multiple(config.feed_forward_dim, num_devices),
    )
    rows = _multiple(config.vocab_size, num_devices)
    specs = decoder_specs(replace(larger, vocab_size=rows))
    return Partition(config=larger, kv_copies=copies, specs=specs)


def _can_copy(copies: int, config: DecoderConfig, num_devices: int) -> bool:
    group = config.num_heads // config.num_kv_heads
    return group % copies == 0 and config.num_kv_heads * copies <= num_devices


def _multiple(size: int, of: int) -> int:
    return -(-size // of) * of
