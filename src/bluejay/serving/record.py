"""What is remembered of one request for its line in the log: never its text."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class RequestRecord:
    """Filled by the handler while the request runs; `started` is of `time.monotonic`.

    `on_placed` is called when the engine's queue has taken the request's samples, or has refused.
    """

    id: str
    started: float = field(default_factory=time.monotonic)
    on_placed: Callable[[], None] = lambda: None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    error: str | None = None  # the code of what broke a stream off, after its status was sent
    _ended: float | None = None

    def add_prompt(self, *, num_tokens: int, num_cached: int = 0) -> None:
        """Count a prompt that was read, `num_cached` tokens of it from the cache."""
        self.prompt_tokens += num_tokens
        self.cached_tokens += num_cached

    def add_tokens(self, count: int = 1) -> None:
        """Count new tokens."""
        self.new_tokens += count

    def end(self) -> None:
        """The answer is on its way: `seconds` grow no more."""
        self._ended = time.monotonic()

    def seconds(self) -> float:
        """From the request's begin to now, or to its end."""
        return (self._ended or time.monotonic()) - self.started
