"""What a scheduler tells a device to do, and the requests it tells it for. Starts without JAX."""

from dataclasses import dataclass, field
from typing import Literal

from bluejay.generation.engine_requests import EngineRequest, PromptProgress

Phase = Literal["queued", "prefill", "decode", "ended"]


@dataclass(eq=False, kw_only=True)
class ScheduledRequest:
    """A request on its way through the scheduler, which alone writes to it.

    `slots[i]` is the row of the cache that `request.prompts[i]` has; there are none while it is
    queued, and they stay named after its end. `num_new` ids were chosen so far.
    """

    request: EngineRequest
    deadline: float | None = None
    phase: Phase = "queued"
    slots: tuple[int, ...] = ()
    num_done: int = 0
    num_cached: int = 0
    num_new: int = 0
    num_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_tokens = sum(map(len, self.request.prompts))

    @property
    def progress(self) -> PromptProgress:
        """Of all prompts together, in tokens."""
        return PromptProgress(
            num_done=self.num_done, num_tokens=self.num_tokens, num_cached=self.num_cached
        )

    @property
    def remaining(self) -> int:
        """Ids that may still be chosen."""
        return self.request.max_tokens - self.num_new


@dataclass(frozen=True, kw_only=True)
class PrefillChunk:
    """Run `ids` at positions `begin` … of row `slot`, padded with zeros to `size`.

    Positions before `begin` hold the prompt already, be it computed, copied or left there by
    another request: the first chunk of a slot need not begin at 0. `is_last`: of this slot's
    prompt, whose last logits choose the first id. `ends_prompts`: of all prompts of the request,
    which decodes from now on, or is finished by the caller where `max_tokens` is 0.
    """

    request: ScheduledRequest
    slot: int
    begin: int
    size: int
    ids: tuple[int, ...]
    is_last: bool
    ends_prompts: bool


@dataclass(frozen=True, kw_only=True)
class CopyPrefix:
    """Copy positions 0 … `length` - 1 of row `source` over those of row `target`.

    The source may be free, or in the middle of its own prefill or decoding, and does not change.
    """

    request: ScheduledRequest
    source: int
    target: int
    length: int


@dataclass(frozen=True, kw_only=True)
class Decode:
    """At most `max_steps` steps of the rows of these requests, all others standing still.

    A row that ends early stands still as well. Fewer steps than allowed, or several calls for
    parts of the requests, are always right.
    """

    requests: tuple[ScheduledRequest, ...]
    max_steps: int

    @property
    def slots(self) -> tuple[int, ...]:
        """All rows that move, request by request."""
        return tuple(slot for scheduled in self.requests for slot in scheduled.slots)


@dataclass(frozen=True, kw_only=True)
class Idle:
    """Nothing to do until a request is submitted."""


Step = PrefillChunk | CopyPrefix | Decode | Idle
