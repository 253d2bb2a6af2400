"""What is remembered of one request for its line in the log and for `/metrics`: never its text."""

import time
from dataclasses import dataclass, field
from typing import Protocol


class Clockwork(Protocol):
    """Takes the times between tokens, in seconds."""

    def first_token(self, seconds: float) -> None:
        """From the request's start to its first token."""

    def next_token(self, seconds: float) -> None:
        """From one token to the next."""


@dataclass(kw_only=True)
class RequestRecord:
    """Filled by the handler while the request runs. Times are those of `time.monotonic`."""

    id: str
    clockwork: Clockwork | None = None
    started: float = field(default_factory=time.monotonic)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    error: str | None = None  # the code of what broke a stream off, after its status was sent
    _last_token: float | None = None

    def add_prompt(self, *, num_tokens: int, num_cached: int = 0) -> None:
        """Count a prompt that was read, `num_cached` tokens of it from the cache."""
        self.prompt_tokens += num_tokens
        self.cached_tokens += num_cached

    def add_tokens(self, count: int = 1) -> None:
        """Count new tokens, as soon as they come."""
        now = time.monotonic()
        self.new_tokens += count
        if self.clockwork is not None:
            if self._last_token is None:
                self.clockwork.first_token(now - self.started)
            else:
                self.clockwork.next_token((now - self._last_token) / count)
        self._last_token = now
