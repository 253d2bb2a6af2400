"""Models of tables, for what works beside the engine: words to suggest, vectors of texts."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluejay.generation.engine_requests import QueueFullError
from bluejay.model.config import DecoderConfig
from bluejay.model.presets import gptj_config
from bluejay.serving.embeddings import Pooling
from serving.live_server import PATIENCE
from serving.text_server import NUM_ROWS

WIDTH = 5
_WORD_SCORES = np.random.default_rng(3).normal(size=(NUM_ROWS, NUM_ROWS)).astype(np.float32) * 3
_WORD_SCORES[:, [i for i in range(NUM_ROWS) if not (97 <= i < 123 or i in (32, 256, 258))]] -= 8
STATES = np.random.default_rng(0).normal(size=(264, WIDTH)).astype(np.float32)


@dataclass(kw_only=True)
class TableEmbedder:
    """The hidden state of a token is its row of a table. `gate` holds every call."""

    width: int = WIDTH
    asked: list[dict[str, Any]] = field(default_factory=list)
    gate: threading.Event | None = None
    began: threading.Event = field(default_factory=threading.Event)

    def embed(
        self, ids: Sequence[int], *, pooling: Pooling, tenant: str, adapter: str | None
    ) -> NDArray[np.float32]:
        self.asked.append({"ids": list(ids), "tenant": tenant, "adapter": adapter})
        self.began.set()
        if self.gate is not None:
            assert self.gate.wait(PATIENCE)
        if ids[0] == 7:
            raise QueueFullError("The queue is full.", limit="queued_requests")
        if ids[0] == 8:
            return np.full(WIDTH, np.nan, np.float32)
        states = STATES[list(ids)]
        return states[-1] if pooling == "last" else states.mean(axis=0)


@dataclass
class Prefix:
    ids: tuple[int, ...]

    @property
    def logits(self) -> Any:
        return _WORD_SCORES[self.ids[-1]]


@dataclass
class TableWords:
    """The next token depends on the last. With `is_gated` every call waits for a permit."""

    config: DecoderConfig = field(
        default_factory=lambda: gptj_config(1, 64, 2, rotary_dim=8, vocab_size=NUM_ROWS)
    )
    is_gated: bool = False
    calls: list[tuple[int, ...]] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    permits: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    began: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def start(self, ids: Sequence[int], *, reserve: int = 0) -> Prefix:
        return self._at(tuple(ids))

    def branch(self, prefix: Prefix, token: int) -> Prefix:
        return self._at((*prefix.ids, token))

    def _at(self, ids: tuple[int, ...]) -> Prefix:
        self.calls.append(ids)
        self.threads.add(threading.get_ident())
        self.began.release()
        if self.is_gated:
            assert self.permits.acquire(timeout=PATIENCE)
        return Prefix(ids)

    def open(self) -> None:
        self.is_gated = False
        for _ in range(1000):
            self.permits.release()
