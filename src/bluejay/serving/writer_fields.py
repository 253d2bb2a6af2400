"""The samplers of writers of fiction on OpenAI's routes: the fields, and what they come to.

Beside the fields that Kobold's clients share stand the names that llama.cpp's server, TextGen's and
TabbyAPI's give the same things on these routes, as SillyTavern sends them.
"""

from collections.abc import Mapping
from typing import Annotated, Final

from msgspec import Meta

from bluejay.generation.sampling_params import SamplingParams
from bluejay.serving.errors import ApiError
from bluejay.serving.fiction_fields import FictionFields, check_fiction, ranged, require_ranges

MIROSTAT_ORDER: Final = (
    *("banned_strings", "penalties", "dry", "temperature", "smoothing", "mirostat"),
)
DEFAULT_ORDER: Final = (
    *("banned_strings", "penalties", "dry", "temperature", "smoothing", "top_n_sigma"),
    *("top_k", "top_p", "min_p", "typ_p", "tfs", "top_a", "xtc"),
)
"""The order of `SamplingParams`, and behind it what that does not have."""

_RANGES: Final[Mapping[str, tuple[float, float]]] = {
    "mirostat_mode": (0, 2),
    "tfs_z": (0.0, 1.0),
    "dry_range": (0, 2**31),
    "dynatemp_low": (0.0, 100.0),
    "dynatemp_high": (0.0, 100.0),
    "repetition_penalty_range": (0, 2**31),
    "repeat_penalty": (1e-6, 1e6),
    "repeat_last_n": (-1, 2**31),
    "top_n_sigma": (-1.0, 100.0),
}
_SAME: Final[Mapping[str, str]] = {
    "mirostat_mode": "mirostat",
    "tfs_z": "tfs",
    "repeat_penalty": "repetition_penalty",
}
# Two ways of saying how many tokens are looked at, which do not count alike.
_ONE_OF: Final = (
    ("dry_range", "dry_penalty_last_n"),
    ("repeat_last_n", "repetition_penalty_range"),
)
OTHER_NAMES: Final[Mapping[str, str]] = {
    "max_new_tokens": "set max_tokens instead.",
    "stopping_strings": "set stop instead.",
    "grammar_string": "set grammar instead.",
    "typical": "set typical_p instead.",
    "rep_pen": "set repetition_penalty instead.",
    "rep_pen_range": "set repetition_penalty_range instead.",
    "sampler_seed": "set seed instead.",
    "sampler_order": "set samplers instead.",
    "sampler_priority": "set samplers instead.",
    "nsigma": "set top_n_sigma instead.",
    "custom_token_bans": "set logit_bias of the tokens to -100, or banned_strings, instead.",
    "epsilon_cutoff": "set min_p or top_a instead.",
    "eta_cutoff": "set min_p or top_a instead.",
    "no_repeat_ngram_size": "set dry_multiplier instead.",
    "penalty_alpha": "contrastive search is not offered.",
    "guidance_scale": "guidance by a second prompt is not offered.",
    "negative_prompt": "guidance by a second prompt is not offered.",
    "truncation_length": "set context_policy instead.",
}
"""Fields of TextGen's and Kobold's clients that OpenAI's routes have by another name or not at all:
the reasons that their refusal gives."""
# Of a sampler by its name in an order: the field that turns it on.
_SWITCHES: Final[Mapping[str, str]] = {
    "dry": "dry_multiplier",
    "smoothing": "smoothing_factor",
    "top_n_sigma": "top_n_sigma",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typ_p": "typical_p",
    "tfs": "tfs",
    "top_a": "top_a",
    "xtc": "xtc_probability",
}
_NEUTRAL: Final[Mapping[str, float]] = {"top_p": 1, "typ_p": 1, "tfs": 1}
_DEFAULTS: Final[Mapping[str, float]] = {
    "dry_multiplier": 0.0,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_penalty_last_n": -1,
    "xtc_probability": 0.0,
    "xtc_threshold": 0.1,
    "mirostat": 0,
    "mirostat_tau": 5.0,
    "mirostat_eta": 0.1,
    "tfs": 1.0,
    "top_a": 0.0,
    "dynatemp_range": 0.0,
    "dynatemp_exponent": 1.0,
    "smoothing_factor": 0.0,
    "smoothing_curve": 1.0,
    "top_n_sigma": -1.0,
}


def _of(name: str, text: str) -> Meta:
    return ranged(*_RANGES[name], text)


class WriterFields(FictionFields, frozen=True, kw_only=True):
    """Other names of some fields, and some more fields. null is as if absent."""

    repetition_penalty: (
        Annotated[float, Meta(extra_json_schema={"minimum": 1e-6, "maximum": 1e6})] | None
    ) = None

    mirostat_mode: (
        Annotated[
            int,
            Meta(description="As mirostat.", extra_json_schema={"enum": [0, 2]}),
        ]
        | None
    ) = None
    tfs_z: Annotated[float, _of("tfs_z", "As tfs.")] | None = None
    dry_range: (
        Annotated[int, _of("dry_range", "As dry_penalty_last_n, but 0 means all.")] | None
    ) = None
    dynamic_temperature: (
        Annotated[bool, Meta(description="false turns the fields that begin with dynatemp off.")]
        | None
    ) = None
    dynatemp_low: (
        Annotated[float, _of("dynatemp_low", "In place of temperature: it moves from here")] | None
    ) = None
    dynatemp_high: Annotated[float, _of("dynatemp_high", "to here.")] | None = None
    repetition_penalty_range: (
        Annotated[
            int,
            _of("repetition_penalty_range", "Of so many tokens; 0, if absent, of all."),
        ]
        | None
    ) = None
    repeat_penalty: Annotated[float, _of("repeat_penalty", "As repetition_penalty.")] | None = None
    repeat_last_n: (
        Annotated[int, _of("repeat_last_n", "As repetition_penalty_range, but -1 means all.")]
        | None
    ) = None
    top_n_sigma: Annotated[float, _of("top_n_sigma", "0 or less, if absent, is off.")] | None = None
    temperature_last: (
        Annotated[bool, Meta(description="The temperature comes behind all filters.")] | None
    ) = None
    samplers: (
        Annotated[
            list[str],
            Meta(description="Which run, in order. If absent: " + ", ".join(DEFAULT_ORDER) + "."),
        ]
        | None
    ) = None


def check_writer(fields: WriterFields) -> None:
    """Refuse, by name, a value out of its range and two names of a thing that differ."""
    check_fiction(fields)
    require_ranges(fields, _RANGES)
    for name, other in _SAME.items():
        value, own = getattr(fields, name), getattr(fields, other)
        if None not in (value, own) and value != own:
            raise ApiError(
                400,
                f"{name} is {value} and {other} {own}, which mean the same: send one.",
                param=name,
            )
    if fields.mirostat_mode == 1:
        raise ApiError(
            400,
            "mirostat_mode is 1, which is not supported: send 2, which replaced it, or 0.",
            param="mirostat_mode",
            code="unsupported_field",
        )
    for name, other in _ONE_OF:
        if None not in (getattr(fields, name), getattr(fields, other)):
            raise ApiError(400, f"{name} and {other} mean the same: send one.", param=name)


def writer_values(fields: WriterFields, sampling: SamplingParams) -> dict[str, float]:
    """What every sampler is set to. ApiError 400 for bounds of a temperature that do not fit."""
    values = {
        name: default if (given := getattr(fields, name)) is None else given
        for name, default in _DEFAULTS.items()
    }
    for name in ("mirostat", "tfs"):
        values[name] = own_or_other(fields, name, values[name])
    if fields.dry_range is not None:
        values["dry_penalty_last_n"] = fields.dry_range or -1
    low, high = _temperatures(fields, sampling.temperature, values["dynatemp_range"])
    return values | {
        "temperature": sampling.temperature,
        "temperature_low": low,
        "temperature_high": high,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "typical_p": sampling.typical_p,
        "repetition_penalty": sampling.repetition_penalty,
        "repetition_last_n": _last_n(fields),
        "presence_penalty": sampling.presence_penalty,
        "frequency_penalty": sampling.frequency_penalty,
    }


def own_or_other(fields: WriterFields, name: str, default: float) -> float:
    """The value of a field that has two names."""
    names = (name, *(other for other, own in _SAME.items() if own == name))
    given = [value for one in names if (value := getattr(fields, one)) is not None]
    return given[0] if given else default


def _last_n(fields: WriterFields) -> int:
    """How many tokens the repetition penalty looks at; -1 for all."""
    if fields.repeat_last_n is not None:
        return fields.repeat_last_n
    return fields.repetition_penalty_range or -1


def switched_on(values: Mapping[str, float], *, bans: bool) -> dict[str, str]:
    """The samplers that change something, each with the field that says so."""
    found = {
        name: field
        for name, field in _SWITCHES.items()
        if (values[field] < 1 if name in _NEUTRAL else values[field] > 0)
    }
    if values["temperature_low"] != values["temperature_high"]:
        found["temperature"] = "dynatemp_range"
    elif values["temperature_low"] != 1:
        found["temperature"] = "temperature"
    for field, neutral in (
        ("frequency_penalty", 0),
        ("presence_penalty", 0),
        ("repetition_penalty", 1),
    ):
        if values[field] != neutral:
            found["penalties"] = field
    if bans:
        found["banned_strings"] = "banned_strings"
    return found


def _temperatures(fields: WriterFields, temperature: float, reach: float) -> tuple[float, float]:
    """Between what the temperature moves."""
    low, high = fields.dynatemp_low, fields.dynatemp_high
    if (low is None) != (high is None):
        raise ApiError(
            400,
            "dynatemp_low and dynatemp_high are the ends of one range: send both or neither.",
            param="dynatemp_high" if high is None else "dynatemp_low",
        )
    if fields.dynamic_temperature is False:
        return temperature, temperature
    if fields.dynamic_temperature and not reach and low is None:
        raise ApiError(
            400,
            "dynamic_temperature is true, but nothing says how far the temperature moves: send"
            " dynatemp_low and dynatemp_high, or dynatemp_range.",
            param="dynamic_temperature",
        )
    around = sorted((max(0.0, temperature - reach), max(0.0, temperature + reach)))
    if low is None or high is None:
        return around[0], around[1]
    if low > high or (low == high != temperature):
        raise ApiError(
            400,
            f"dynatemp_low is {low} and dynatemp_high {high}, but the first must be smaller: for a"
            " temperature that does not move send temperature.",
            param="dynatemp_low",
        )
    if reach and max(abs(low - around[0]), abs(high - around[1])) > 1e-6:
        raise ApiError(
            400,
            f"dynatemp_range {reach} around temperature {temperature} is from {around[0]:g} to"
            f" {around[1]:g}, but dynatemp_low is {low} and dynatemp_high {high}: send one of the"
            " two.",
            param="dynatemp_range",
        )
    return low, high
