"""What an engine is asked and what it answers: ids in, ids out. Starts without JAX.

An engine runs on a thread of its own. Its events reach a listener on that thread, in order, and the
last of them is `Finished` or `Failed`, exactly once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from bluejay.core.errors import UsageError
from bluejay.generation.sampling_params import SamplingParams

FinishReason = Literal["stop", "length"]
Combine = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Raw logits [k, V] of a slot group to those [V] that the next id is drawn from; -inf removes an
id. It is called once for every id that is chosen, in order, so it may keep a state."""


class Constraint(Protocol):
    """What may be chosen next, of one sample: a grammar that walks along with it."""

    def allowed(self) -> NDArray[np.bool_]:
        """[V] bool: the ids that may come next."""

    def accept(self, token: int) -> None:
        """The id that came."""

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow."""


@dataclass(frozen=True, kw_only=True)
class EngineRequest:
    """One sample: a prompt, or k of them in lockstep, and what is asked of it.

    With several `prompts`, `combine` makes one row of logits of theirs and the id that is chosen is
    appended to all; with a single one it may change its logits before `sampling` sees them.
    `max_tokens` 0 only reads the prompt, for its scores. A stop id ends the sample and is not part
    of it. `num_alternatives` likeliest ids come with every choice. `scores_prompt` asks for
    `PromptScores`. Nothing of one `tenant`'s prompts is reused for another's. `adapter` names
    fine-tuned weights that were loaded at the start. Who `is_patient` has no use for words before
    the end: after the first one they come in large parts.
    """

    prompts: Sequence[Sequence[int]]
    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    sample_index: int = 0
    stop_ids: frozenset[int] = frozenset()
    num_alternatives: int = 0
    scores_prompt: bool = False
    combine: Combine | None = None
    constraint: Constraint | None = None
    tenant: str = ""
    adapter: str | None = None
    is_patient: bool = False

    def __post_init__(self) -> None:
        if not self.prompts:
            raise UsageError("A request needs at least one prompt.")
        if self.max_tokens < 0:
            raise UsageError(f"max_tokens must be at least 0, not {self.max_tokens}.")
        if len(self.prompts) > 1 and self.combine is None:
            raise UsageError(
                f"{len(self.prompts)} prompts in lockstep need a function that combines their"
                " logits."
            )
        if self.scores_prompt and len(self.prompts) > 1:
            raise UsageError("Only a single prompt can be scored, not a group of them.")


@dataclass(frozen=True, kw_only=True)
class TokenScore:
    """An id with the model's own log probability in nats; None where nothing stands before it. Of a
    group of prompts it is that of their combined logits.

    `alternatives` are the likeliest (id, log probability) there, best first.
    """

    id: int
    logprob: float | None
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class PromptProgress:
    """`num_done` of `num_tokens` of the prompt are in the cache, `num_cached` of them reused."""

    num_done: int
    num_tokens: int
    num_cached: int


@dataclass(frozen=True, kw_only=True)
class PromptScores:
    """The log probability of every token of the prompt."""

    scores: tuple[TokenScore, ...]


@dataclass(frozen=True, kw_only=True)
class NewTokens:
    """Ids that were chosen, in order, none of them a stop id."""

    scores: tuple[TokenScore, ...]


@dataclass(frozen=True, kw_only=True)
class Finished:
    """The sample has ended: by a stop id or a complete constraint, or by `max_tokens`. `end` is the
    stop id that was chosen."""

    reason: FinishReason
    end: TokenScore | None = None


@dataclass(frozen=True, kw_only=True)
class Failed:
    """The sample cannot be finished. `is_transient`: the same request may succeed later."""

    message: str
    is_transient: bool


EngineEvent = PromptProgress | PromptScores | NewTokens | Finished | Failed
Listener = Callable[[EngineEvent], None]


class QueueFullError(UsageError):
    """The queue has no place for the request; `limit` says which bound it met."""

    def __init__(self, message: str, *, limit: str) -> None:
        super().__init__(message)
        self.limit = limit


@dataclass(frozen=True, kw_only=True)
class EngineLimits:
    """How much is taken on at once."""

    num_slots: int = 8
    context_length: int = 2048
    queued_requests: int = 64
    queued_tokens: int = 32_768


@dataclass(frozen=True, kw_only=True)
class EngineStatus:
    """A reading for `/metrics`, `/ready` and the page; counters since the start."""

    is_ready: bool
    is_failed: bool
    slots_in_use: int
    queued_requests: int
    queued_tokens: int
    prompt_tokens: int
    cached_prompt_tokens: int
    new_tokens: int
    finished: int
    cancelled: int
    failed: int
    rejected: int
    recompiles: int  # programs compiled after the engine was ready
    restarts: int = 0  # of the engine in its place, after a fault of its own


class Engine(Protocol):
    """What serving knows of an engine. All methods may be called from any thread."""

    @property
    def limits(self) -> EngineLimits: ...

    def submit(self, request: EngineRequest, listener: Listener) -> Callable[[], None]:
        """Queue a request; what is returned cancels it, at once and without a further event.

        Raises UsageError for a request that can never run, QueueFullError for one too many, and
        `EngineStoppedError` when the engine no longer takes any.
        """

    def require_place(self, num_ahead: int = 0) -> None:
        """Raise QueueFullError if `submit` would after so many more, whatever it was given."""

    def status(self) -> EngineStatus: ...


class EngineStoppedError(UsageError):
    """The engine drains or has stopped."""
