"""What is remembered of one request for its line in the log: never its text."""

import time
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class RequestRecord:
    """Filled by the handler while the request runs; `started` is of `time.monotonic`."""

    id: str
    started: float = field(default_factory=time.monotonic)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    error: str | None = None  # the code of what broke a stream off, after its status was sent

    def add_prompt(self, *, num_tokens: int, num_cached: int = 0) -> None:
        """Count a prompt that was read, `num_cached` tokens of it from the cache."""
        self.prompt_tokens += num_tokens
        self.cached_tokens += num_cached

    def add_tokens(self, count: int = 1) -> None:
        """Count new tokens."""
        self.new_tokens += count

    def seconds(self) -> float:
        """Since the request began."""
        return time.monotonic() - self.started
