"""Batches of token windows. A batch is a function of its number alone: resuming seeks nothing.

Axes: B rows  T positions that are predicted
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bluejay.core.errors import DataError, UsageError
from bluejay.data.permutation import mix, permuted
from bluejay.shards.reader import TokenShards


class TokenBatch(NamedTuple):
    """B windows of T + 1 ids; `weights` of the T predicted ones, or None where all count 1."""

    ids: NDArray[np.int32]  # B T+1
    weights: NDArray[np.float32] | None  # B T


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """How shards become batches. Lengths in tokens.

    Windows are shuffled inside consecutive blocks of `shuffle_tokens` (None: all together), so
    that shards which begin with simple texts can be read in that order. Every further epoch cuts
    its windows at other places.
    """

    rows: int
    length: int
    seed: int = 0
    shuffle_tokens: int | None = None

    def __post_init__(self) -> None:
        for name in ("rows", "length"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.shuffle_tokens is not None and self.shuffle_tokens < self.length:
            raise UsageError(
                f"shuffle_tokens is {self.shuffle_tokens}, less than one window of {self.length}: "
                "give more, or None to shuffle everything."
            )

    @property
    def tokens(self) -> int:
        """Predicted tokens of one batch."""
        return self.rows * self.length


class Batches:
    """All batches of a training run over one set of shards, by number; there is no last one.

    Shards with a row length give whole rows of that length (`length` must be one less), others
    windows that overlap by the one token which the next window predicts from.
    """

    def __init__(self, shards: TokenShards, config: BatchConfig) -> None:
        self._shards, self._config = shards, config
        self._row_length = shards.manifest.row_length
        if self._row_length is not None and self._row_length != config.length + 1:
            raise DataError(
                f"The shards hold rows of {self._row_length} tokens, but the run asks for "
                f"{config.length} + 1: set the length to {self._row_length - 1}."
            )
        self.num_windows = self._count_windows()
        if self.num_windows < 1:
            raise DataError(
                f"The shards hold {shards.num_tokens:,} tokens, too few for one window of "
                f"{config.length} + 1: take more text or a shorter length."
            )

    def __getitem__(self, number: int) -> TokenBatch:
        """Batch `number`, counted from 0 over all epochs."""
        rows = self._config.rows
        places = [self._place(number * rows + row) for row in range(rows)]
        size = self._config.length + 1
        ids = np.stack([self._shards.read(place, place + size) for place in places])
        if not self._shards.manifest.has_weights:
            return TokenBatch(ids, None)
        weights = [self._shards.read_weights(place + 1, place + size) for place in places]
        return TokenBatch(ids, np.stack(weights))

    def _count_windows(self) -> int:
        if self._row_length is not None:
            return self._shards.num_tokens // self._row_length
        # One window is left for the shift of later epochs.
        return max((self._shards.num_tokens - 1) // self._config.length - 1, 0)

    def _place(self, index: int) -> int:
        """The first token of window `index`, counted over all epochs."""
        epoch, within = divmod(index, self.num_windows)
        window = self._shuffled(within, epoch)
        if self._row_length is not None:
            return window * self._row_length
        shift = mix(self._config.seed, epoch, 1) % self._config.length if epoch else 0
        return window * self._config.length + shift

    def _shuffled(self, index: int, epoch: int) -> int:
        config = self._config
        whole = self.num_windows
        size = whole if config.shuffle_tokens is None else config.shuffle_tokens // config.length
        block, within = divmod(index, size)
        in_block = min(size, whole - block * size)
        return block * size + permuted(within, in_block, mix(config.seed, epoch, block))
