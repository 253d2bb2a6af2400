"""Engines over small random models, and what a client of theirs hears."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluejay.generation.engine import SlotEngine
from bluejay.generation.engine_requests import (
    EngineEvent,
    EngineLimits,
    EngineRequest,
    Failed,
    Finished,
    NewTokens,
    PromptProgress,
    PromptScores,
    TokenScore,
)
from bluejay.generation.generate import GenerationRequest, generate
from bluejay.generation.runner import Runner
from bluejay.generation.speculation import Speculation
from speculation_models import VOCAB, runner_of

# Seconds until a test gives up: a busy machine may stand still for a minute.
PATIENCE = 300.0
LIMITS = EngineLimits(num_slots=5, context_length=512, queued_requests=256, queued_tokens=100_000)


def allowed_ids() -> NDArray[np.bool_]:
    """All but one."""
    allowed = np.ones(VOCAB, np.bool_)
    allowed[3] = False
    return allowed


class EvenIds:
    """A constraint: only even ids; never complete."""

    is_complete = False

    def allowed(self) -> NDArray[np.bool_]:
        return np.arange(VOCAB) % 2 == 0

    def accept(self, token: int) -> None:
        assert token % 2 == 0


class Client:
    """Submits one request and keeps its events; `on_event` hears each on the engine's thread."""

    def __init__(
        self,
        engine: SlotEngine,
        request: EngineRequest,
        on_event: Callable[["Client", EngineEvent], None] = lambda client, event: None,
    ) -> None:
        self.events: list[EngineEvent] = []
        self._on_event = on_event
        self._ended = threading.Event()
        self.cancel = engine.submit(request, self._listen)

    def _listen(self, event: EngineEvent) -> None:
        self.events.append(event)
        self._on_event(self, event)
        if isinstance(event, Finished | Failed):
            self._ended.set()

    def wait(self) -> "Client":
        assert self._ended.wait(PATIENCE), f"no end after {self.events[-3:]}"
        return self

    @property
    def tokens(self) -> list[TokenScore]:
        return [
            score for event in self.events if isinstance(event, NewTokens) for score in event.scores
        ]

    @property
    def ids(self) -> list[int]:
        return [score.id for score in self.tokens]

    @property
    def ending(self) -> Finished | Failed | None:
        last = self.events[-1] if self.events else None
        return last if isinstance(last, Finished | Failed) else None

    @property
    def prompt_scores(self) -> tuple[TokenScore, ...]:
        [found] = [event.scores for event in self.events if isinstance(event, PromptScores)]
        return found

    @property
    def progress(self) -> PromptProgress:
        """The last reading."""
        return [event for event in self.events if isinstance(event, PromptProgress)][-1]


@contextmanager
def running(
    runner: Runner | None = None, *, limits: EngineLimits = LIMITS, **options: Any
) -> Iterator[SlotEngine]:
    """An engine that is warm, and stopped at the end."""
    engine = SlotEngine(
        runner or runner_of("llama", 4, "float16"), allowed=allowed_ids(), limits=limits, **options
    )
    engine.start()
    try:
        wait_until(lambda: engine.status().is_ready or engine.status().is_failed)
        assert engine.status().is_ready
        yield engine
    finally:
        assert engine.stop(PATIENCE)


def wait_until(is_so: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE
    while not is_so():
        assert time.monotonic() < end
        time.sleep(0.01)


def expected(runner: Runner, request: EngineRequest) -> list[TokenScore]:
    """What `generate` gives for the request, alone and step by step."""
    [prompt] = request.prompts
    asked = GenerationRequest(
        prompt_ids=prompt,
        max_tokens=request.max_tokens,
        sampling=request.sampling,
        stop_ids=request.stop_ids,
        num_samples=request.sample_index + 1,
        num_alternatives=request.num_alternatives,
    )
    samples = {
        sample.sample_index: sample
        for sample in generate(
            runner, [asked], allowed=allowed_ids(), speculation=Speculation(mode="off")
        )
    }
    return [
        TokenScore(
            id=choice.id,
            logprob=choice.logprob,
            alternatives=tuple((other.id, other.logprob) for other in choice.alternatives),
        )
        for choice in samples[request.sample_index].choices
    ]


def prompts_of(lengths: Sequence[int]) -> list[list[int]]:
    return [np.random.default_rng(length).integers(4, VOCAB, length).tolist() for length in lengths]
