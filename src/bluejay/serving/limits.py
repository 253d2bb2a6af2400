"""Every bound on what one client can ask of the server, with the flag that moves it."""

from dataclasses import dataclass, field, fields
from typing import Any

from bluejay.core.errors import UsageError
from bluejay.serving.errors import ApiError, unavailable


def _limit(default: float, flag: str, unit: str) -> Any:
    """A field with the flag that sets it and the unit that its values are counted in."""
    return field(default=default, metadata={"flag": flag, "unit": unit})


@dataclass(frozen=True, kw_only=True)
class _Bounds:
    """Numbers that can be looked up by name, each with its flag."""

    def __post_init__(self) -> None:
        for bound in fields(self):
            value = getattr(self, bound.name)
            if not value > 0:
                raise UsageError(f"{bound.metadata['flag']} must be more than 0, not {value}.")

    def flag(self, name: str) -> str:
        """The option of the command line that sets the limit `name`."""
        return str(_metadata(self, name)["flag"])

    def unit(self, name: str) -> str:
        """What the values of `name` are counted in."""
        return str(_metadata(self, name)["unit"])

    def check(
        self, name: str, value: float, *, param: str | None = None, status: int = 400
    ) -> None:
        """Refuse more than the limit `name` with an ApiError that names limit, value and flag."""
        if value > getattr(self, name):
            message = self.message(name, value, param=param)
            raise ApiError(status, message, param=param, code="limit_exceeded")

    def message(self, name: str, value: float, *, param: str | None = None) -> str:
        """The sentence that refuses `value`."""
        what = f"{param} has" if param else "The request has"
        return (
            f"{what} {value:,} {self.unit(name)} and the limit is"
            f" {getattr(self, name):,}: shorten it, or raise the limit with the server's"
            f" {self.flag(name)}."
        )


def _metadata(bounds: _Bounds, name: str) -> Any:
    return type(bounds).__dataclass_fields__[name].metadata


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits(_Bounds):
    """What is taken from the network; times in seconds."""

    header_bytes: int = _limit(32 * 1024, "--max-header-bytes", "bytes of headers")
    header_count: int = _limit(100, "--max-headers", "headers")
    header_seconds: float = _limit(5.0, "--header-timeout", "seconds")
    body_bytes: int = _limit(1 << 20, "--max-body-bytes", "bytes of body")
    body_seconds: float = _limit(10.0, "--body-timeout", "seconds")
    connections: int = _limit(256, "--max-connections", "connections")
    idle_seconds: float = _limit(5.0, "--keep-alive-timeout", "seconds")
    blocked_seconds: float = _limit(30.0, "--write-timeout", "seconds")


@dataclass(frozen=True, kw_only=True)
class RequestLimits(_Bounds):
    """How much one request may ask for; what stands in its prompt is counted before tokenising."""

    prompt_characters: int = _limit(32 * 1024, "--max-prompt-characters", "characters")
    prompts: int = _limit(64, "--max-prompts", "prompts")
    samples: int = _limit(8, "--max-samples", "samples")
    sequences: int = _limit(64, "--max-sequences", "sequences (prompts times samples)")
    stop_strings: int = _limit(4, "--max-stop-strings", "strings")
    stop_characters: int = _limit(64, "--max-stop-characters", "characters")
    bad_words: int = _limit(128, "--max-bad-words", "entries")
    logit_bias: int = _limit(1024, "--max-logit-bias", "entries")
    logprobs: int = _limit(20, "--max-logprobs", "alternatives per token")
    grammar_bytes: int = _limit(16 * 1024, "--max-grammar-bytes", "bytes of grammar")
    grammar_depth: int = _limit(64, "--max-grammar-depth", "levels of nesting")
    grammar_seconds: float = _limit(0.2, "--grammar-timeout", "seconds")


@dataclass(frozen=True, kw_only=True)
class WaitLimits(_Bounds):
    """How long things may take, in seconds."""

    queue_seconds: float = _limit(30.0, "--queue-timeout", "seconds")
    request_seconds: float = _limit(300.0, "--request-timeout", "seconds")
    drain_seconds: float = _limit(30.0, "--drain-timeout", "seconds")
    ping_seconds: float = _limit(15.0, "--ping-interval", "seconds")
    hang_seconds: float = _limit(120.0, "--hang-timeout", "seconds")

    def queue_timeout(self) -> ApiError:
        """What is told to a call whose turn has not come in time."""
        return unavailable(
            f"The request waited {self.queue_seconds:g} s in the queue and its turn did not come:"
            f" send it again later, or raise the server's {self.flag('queue_seconds')}.",
            code="queue_timeout",
        )


@dataclass(frozen=True, kw_only=True)
class DeskLimits(_Bounds):
    """How many calls at once may run or wait for what works beside the engine."""

    embeddings: int = _limit(64, "--max-embedding-requests", "requests for embeddings")
    suggestions: int = _limit(32, "--max-suggest-requests", "requests for words")


@dataclass(frozen=True, kw_only=True)
class Limits:
    """All of them. What the engine takes on at once is `EngineLimits`."""

    connection: ConnectionLimits = field(default_factory=ConnectionLimits)
    request: RequestLimits = field(default_factory=RequestLimits)
    wait: WaitLimits = field(default_factory=WaitLimits)
    desk: DeskLimits = field(default_factory=DeskLimits)


ENGINE_FLAGS = {
    "num_slots": "--slots",
    "context_length": "--context",
    "queued_requests": "--queue-requests",
    "queued_tokens": "--queue-tokens",
}
"""The flags that set the fields of `EngineLimits`."""
