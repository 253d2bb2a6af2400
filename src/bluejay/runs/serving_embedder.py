"""Vectors of texts, from the model that is served and its adapters."""

import threading
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bluejay.generation.hidden_states import HiddenStates
from bluejay.generation.prompt_chunks import chunks
from bluejay.generation.pulse import Pulse
from bluejay.generation.runner import Runner
from bluejay.serving.embeddings import Pooling


class ModelEmbedder:
    """Pools hidden states, one text at a time. Implements `serving.embeddings.Embedder`."""

    def __init__(self, runners: Mapping[str | None, Runner], *, context_length: int) -> None:
        self._states = {
            name: HiddenStates(runner, context_length=context_length)
            for name, runner in runners.items()
        }
        self._width = runners[None].config.embed_dim
        self._turn, self.pulse = threading.Lock(), Pulse()

    @property
    def width(self) -> int:
        return self._width

    def warm_up(self) -> None:
        """Compile every program."""
        for states in self._states.values():
            states.warm_up()

    def embed(
        self, ids: Sequence[int], *, pooling: Pooling, tenant: str, adapter: str | None
    ) -> NDArray[np.float32]:
        """As the interface says. Nothing is kept of a text, for whichever tenant."""
        with self._turn, self.pulse.piece(parts=max(1, len(chunks(len(ids))))):
            return self._states[adapter].pooled(ids, pooling=pooling)
