"""The samplers that writers of fiction use, and their refusal where they are not there."""

from typing import Any, Final

from bluejay.serving.errors import ApiError
from bluejay.serving.routes import StrictBody


class FictionFields(StrictBody, frozen=True, kw_only=True):
    """DRY, XTC, mirostat, tail-free and top-a sampling, dynamic temperature; null is as if absent.

    The names are those of KoboldCpp and llama.cpp.
    """

    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: list[str] | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    tfs: float | None = None
    top_a: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None


# The field that turns a sampler on, and its value that does not; the others only say how.
_NEUTRAL: Final[dict[str, float]] = {
    "dry_multiplier": 0,
    "xtc_probability": 0,
    "mirostat": 0,
    "tfs": 1,
    "top_a": 0,
    "dynatemp_range": 0,
}


def require_neutral(fields: FictionFields) -> None:
    """Refuse, by its name, a sampler that is not there."""
    for name, neutral in _NEUTRAL.items():
        value: Any = getattr(fields, name)
        if value is not None and value != neutral:
            raise ApiError(
                400,
                f"{name} is {value}, but this sampler is not supported: leave {name} out, or send"
                f" {neutral}, which turns it off.",
                param=name,
                code="unsupported_field",
            )
