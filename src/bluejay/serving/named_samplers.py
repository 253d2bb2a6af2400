"""Samplers by the names that llama.cpp's server gives them, as stages of a chain.

`/infill` and OpenAI's routes take the same ones. Names that llama.cpp does not have any more, or
never had, are the fields' own: `tfs`, `top_a`, `smoothing`, `banned_strings`, `mirostat`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

from bluejay.generation import candidates as filters
from bluejay.generation.candidates import Sampler
from bluejay.generation.sampler_chain import ExcludeTopChoices, Filter, Mirostat, Penalties, Stage
from bluejay.text.text_samplers import BannedStrings, Infill, repeated_sequences
from bluejay.vocab.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """What the samplers of one sample are set to.

    `values` has the fields' numbers, absent ones at their defaults, and `temperature_low` and
    `temperature_high`, which are the temperature where it does not move. Presence and frequency
    count what stands in the prompt if they do in llama.cpp (`counts_prompt`), and not in OpenAI's.
    """

    values: Mapping[str, float]
    tokenizer: Tokenizer
    seed: tuple[int, ...]
    breakers: tuple[str, ...] = ()
    banned: tuple[str, ...] = ()
    stop_ids: frozenset[int] = frozenset()
    counts_prompt: bool = True


def named_stages(name: str, settings: SamplerSettings) -> list[Stage]:
    """New stages of a sampler; none where it is off. KeyError for a name that there is not."""
    if name in _FILTERS:
        return [Filter(_FILTERS[name](settings.values))]
    return _STAGES[name](settings)


def _penalties(settings: SamplerSettings) -> list[Stage]:
    values = settings.values
    last_n = int(values["repetition_last_n"])
    return [
        Penalties(repetition=values["repetition_penalty"], last_n=last_n),
        Penalties(
            presence=values["presence_penalty"],
            frequency=values["frequency_penalty"],
            last_n=last_n if settings.counts_prompt else -1,
            counts_prompt=settings.counts_prompt,
        ),
    ]


def _dry(settings: SamplerSettings) -> list[Stage]:
    values = settings.values
    if values["dry_multiplier"] <= 0:
        return []
    return [
        repeated_sequences(
            settings.tokenizer,
            multiplier=values["dry_multiplier"],
            base=values["dry_base"],
            allowed_length=int(values["dry_allowed_length"]),
            last_n=int(values["dry_penalty_last_n"]),
            breakers=settings.breakers,
        )
    ]


def _xtc(settings: SamplerSettings) -> list[Stage]:
    return [
        ExcludeTopChoices(
            probability=settings.values["xtc_probability"],
            threshold=settings.values["xtc_threshold"],
            seed=settings.seed,
        )
    ]


def _mirostat(settings: SamplerSettings) -> list[Stage]:
    values = settings.values
    return [Mirostat(target=values["mirostat_tau"], rate=values["mirostat_eta"])]


def _banned(settings: SamplerSettings) -> list[Stage]:
    return [BannedStrings(settings.tokenizer, settings.banned)] if any(settings.banned) else []


def _temperature(values: Mapping[str, float]) -> Sampler:
    low, high = values["temperature_low"], values["temperature_high"]
    if low == high:
        return partial(filters.scale, temperature=low)
    return filters.dynamic_temperature(low, high, values["dynatemp_exponent"])


def _smoothing(values: Mapping[str, float]) -> Sampler:
    factor = values["smoothing_factor"]
    return filters.smooth(factor, values["smoothing_curve"]) if factor else lambda found: found


_FILTERS: Final[Mapping[str, Callable[[Mapping[str, float]], Sampler]]] = {
    "top_n_sigma": lambda v: partial(filters.top_n_sigma, n=v["top_n_sigma"]),
    "top_k": lambda v: partial(filters.top_k, k=int(v["top_k"])),
    "typ_p": lambda v: partial(filters.typical, p=v["typical_p"]),
    "typical_p": lambda v: partial(filters.typical, p=v["typical_p"]),
    "top_p": lambda v: partial(filters.top_p, p=v["top_p"]),
    "min_p": lambda v: partial(filters.min_p, p=v["min_p"]),
    "tfs": lambda v: partial(filters.tail_free, z=v["tfs"]),
    "top_a": lambda v: partial(filters.top_a, a=v["top_a"]),
    "temperature": _temperature,
    "smoothing": _smoothing,
}
_STAGES: Final[Mapping[str, Callable[[SamplerSettings], list[Stage]]]] = {
    "penalties": _penalties,
    "dry": _dry,
    "xtc": _xtc,
    "mirostat": _mirostat,
    "banned_strings": _banned,
    "infill": lambda settings: [Infill(settings.tokenizer, settings.stop_ids)],
}
