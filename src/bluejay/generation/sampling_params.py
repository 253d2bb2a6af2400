"""What a request asks of sampling; starts without JAX."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Final, TypeGuard

from bluejay.core.errors import UsageError

# What reads well on a base model: a little below the model's own spread, without its tail.
DEFAULT_TEMPERATURE: Final = 0.8
DEFAULT_TOP_P: Final = 0.95
MAX_SEED: Final = 2**63 - 1
MAX_TOP_K: Final = 2**31 - 1
# Beyond these, float32 scores could overflow; nobody's text changes long before.
SMALLEST_FACTOR: Final = 1e-6
LARGEST_FACTOR: Final = 1e6


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How the next id is chosen from the logits. The defaults sample the model as it is.

    Transforms run in the order of Hugging Face's `generate`: logit bias, repetition penalty (ids
    of the prompt and generated ones, HF's formula), presence and frequency penalty (generated ids
    only, OpenAI's formula), temperature, top-k, top-p, min-p, typical. Each filter renormalises
    what the one before it left. Temperature 0 is greedy: the largest score after bias and
    penalties, the lowest id among equals.

    Raises UsageError when a value is out of its range.
    """

    temperature: float = 1.0
    top_k: int = 0  # 0 is off
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature != 0:
            self._check_number(
                "temperature", SMALLEST_FACTOR, LARGEST_FACTOR, hint="0 (greedy) or "
            )
        self._check_number("min_p", 0, 1, open_end="above")
        self._check_number("top_p", 0, 1, open_end="below")
        self._check_number("typical_p", 0, 1, open_end="below")
        self._check_number("repetition_penalty", SMALLEST_FACTOR, LARGEST_FACTOR)
        self._check_number("presence_penalty", -2, 2)
        self._check_number("frequency_penalty", -2, 2)
        self._check_integer("top_k", MAX_TOP_K)
        self._check_integer("seed", MAX_SEED)
        for token, bias in self.logit_bias.items():
            _check_bias(token, bias)
        # A copy: what the caller does to its mapping later must not change a checked value.
        object.__setattr__(self, "logit_bias", dict(self.logit_bias))

    @property
    def is_greedy(self) -> bool:
        """Whether the choice needs no random number."""
        return self.temperature == 0

    def _check_number(
        self, name: str, low: float, high: float, *, open_end: str = "", hint: str = ""
    ) -> None:
        value = getattr(self, name)
        excluded = {"below": low, "above": high}.get(open_end)
        if _is_number(value) and low <= value <= high and value != excluded:
            return
        span = {"below": f"above {low:g}, at most", "above": f"from {low:g} to less than"}
        allowed = f"{span.get(open_end, f'from {low:g} to')} {high:g}"
        raise UsageError(f"{name} is {value!r}, but it must be {hint}{allowed}.")

    def _check_integer(self, name: str, high: int) -> None:
        value = getattr(self, name)
        if not _is_whole(value) or not 0 <= value <= high:
            raise UsageError(
                f"{name} is {value!r}, but it must be a whole number from 0 to {high}."
            )


def _check_bias(token: object, bias: object) -> None:
    if not _is_whole(token) or token < 0:
        raise UsageError(f"logit_bias names the id {token!r}, but ids are whole numbers from 0.")
    if not _is_number(bias) or not -100 <= bias <= 100:
        raise UsageError(
            f"logit_bias of id {token} is {bias!r}, but it must be a number from -100 to 100."
        )


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_whole(value: object) -> TypeGuard[int]:
    return isinstance(value, Integral) and not isinstance(value, bool)
