"""The fields of samplers that writers of fiction use, as Kobold's and OpenAI's routes share them.

The names are those of KoboldCpp and of llama.cpp's server.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from bluejay.serving.errors import ApiError
from bluejay.serving.routes import StrictBody
from bluejay.vocab.quoting import quoted

DRY_BREAKERS: Final = ("\n", ":", '"', "*")
MOST_BREAKERS: Final = 64
MOST_BANNED: Final = 256
MOST_CHARACTERS: Final = 128
"""Of a text that breaks sequences or is banned: each is looked for at every token."""

RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "dry_multiplier": (0.0, 100.0),
    "dry_base": (0.0, 100.0),
    "dry_allowed_length": (0, 2**31),
    "dry_penalty_last_n": (-1, 2**31),
    "xtc_probability": (0.0, 1.0),
    "xtc_threshold": (0.0, 1.0),
    "mirostat_tau": (0.0, 100.0),
    "mirostat_eta": (0.0, 10.0),
    "tfs": (0.0, 1.0),
    "top_a": (0.0, 100.0),
    "dynatemp_range": (-100.0, 100.0),
    "dynatemp_exponent": (0.0, 100.0),
    "smoothing_factor": (0.0, 100.0),
    "smoothing_curve": (0.01, 100.0),
}


def ranged(low: float, high: float, text: str | None = None) -> Meta:
    """A number from `low` to `high`, as the schema says it."""
    return Meta(description=text, extra_json_schema={"minimum": low, "maximum": high})


def _of(name: str, text: str | None = None) -> Meta:
    return ranged(*RANGES[name], text)


class FictionFields(StrictBody, frozen=True, kw_only=True):
    """DRY, XTC, mirostat, tail-free, top-a, dynamic temperature and more; null is as if absent."""

    dry_multiplier: Annotated[float, _of("dry_multiplier", "DRY; 0, if absent, is off.")] | None = (
        None
    )
    dry_base: Annotated[float, _of("dry_base", "1.75 if absent.")] | None = None
    dry_allowed_length: Annotated[int, _of("dry_allowed_length", "2 if absent.")] | None = None
    dry_penalty_last_n: (
        Annotated[int, _of("dry_penalty_last_n", "Of so many tokens; -1, if absent, of all.")]
        | None
    ) = None
    dry_sequence_breakers: (
        Annotated[
            list[str] | str,
            Meta(description="Texts, or a string with a JSON list of them, that end a sequence."),
        ]
        | None
    ) = None
    xtc_probability: (
        Annotated[float, _of("xtc_probability", "XTC; 0, if absent, is off.")] | None
    ) = None
    xtc_threshold: Annotated[float, _of("xtc_threshold", "0.1 if absent.")] | None = None
    mirostat: (
        Annotated[
            int,
            Meta(
                description="2, or 0, if absent, for off; it takes the place of other filters.",
                extra_json_schema={"enum": [0, 2]},
            ),
        ]
        | None
    ) = None
    mirostat_tau: Annotated[float, _of("mirostat_tau", "5 if absent.")] | None = None
    mirostat_eta: Annotated[float, _of("mirostat_eta", "0.1 if absent.")] | None = None
    tfs: Annotated[float, _of("tfs", "Tail-free; 1, if absent, is off.")] | None = None
    top_a: Annotated[float, _of("top_a", "0, if absent, is off.")] | None = None
    dynatemp_range: (
        Annotated[
            float,
            _of("dynatemp_range", "So far the temperature moves either way; 0, if absent, is off."),
        ]
        | None
    ) = None
    dynatemp_exponent: Annotated[float, _of("dynatemp_exponent", "1 if absent.")] | None = None
    smoothing_factor: (
        Annotated[float, _of("smoothing_factor", "Quadratic sampling; 0, if absent, is off.")]
        | None
    ) = None
    smoothing_curve: Annotated[float, _of("smoothing_curve", "1 if absent.")] | None = None
    banned_strings: Annotated[list[str], Meta(description="Texts that do not come.")] | None = None


def check_fiction(fields: FictionFields) -> None:
    """Refuse, by name, a value out of its range."""
    require_ranges(fields, RANGES)
    if fields.mirostat not in (None, 0, 2):
        raise unsupported("mirostat", fields.mirostat, "send 2, which replaced it, or 0.")
    sequence_breakers(fields.dry_sequence_breakers)
    check_texts("banned_strings", fields.banned_strings or (), MOST_BANNED)


def require_ranges(fields: object, ranges: Mapping[str, tuple[float, float]]) -> None:
    """Refuse the first field that is there and out of its range."""
    for name, (low, high) in ranges.items():
        value = getattr(fields, name)
        if value is not None and not low <= value <= high:
            raise ApiError(
                400, f"{name} is {value}, but it must be from {low:g} to {high:g}.", param=name
            )


def unsupported(name: str, value: object, reason: str) -> ApiError:
    """The refusal of a known field's value that is not offered."""
    return ApiError(
        400,
        f"{name} is {str(value)[:50]!r}, which is not supported: {reason}",
        param=name,
        code="unsupported_field",
    )


def sequence_breakers(value: Sequence[str] | str | None) -> tuple[str, ...]:
    """What ends a sequence. A string holds the items of a JSON list, with or without brackets, as
    TextGen's server takes it; DRY's own breakers if absent. ApiError 400 for anything else."""
    name = "dry_sequence_breakers"
    if value is None:
        return DRY_BREAKERS
    texts: Sequence[str] = value
    if isinstance(value, str):
        items = value.strip()
        items = items if items.startswith("[") else f"[{items}]"
        try:
            texts = msgspec.json.decode(items, type=list[str])
        except msgspec.MsgspecError:
            raise ApiError(
                400,
                f"{name} is {quoted(value)}, but it must be a list of texts, or a string with the"
                " items of such a list in JSON.",
                param=name,
            ) from None
    check_texts(name, texts, MOST_BREAKERS)
    return tuple(texts)


def check_texts(name: str, texts: Sequence[str], most: int) -> None:
    """Refuse more texts than `most`, and longer ones than are looked for."""
    if len(texts) > most:
        raise ApiError(400, f"{name} has {len(texts)} texts and may have {most}.", param=name)
    longest = max(map(len, texts), default=0)
    if longest > MOST_CHARACTERS:
        raise ApiError(
            400,
            f"A text of {name} has {longest} characters and may have {MOST_CHARACTERS}.",
            param=name,
        )
