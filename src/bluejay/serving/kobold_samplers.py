"""The samplers of a Kobold request as stages of a chain, in the order that it asks for.

What is absent is off. As in KoboldCpp the score cut of `nsigma`, repeated sequences and banned
texts come first and XTC last, and mirostat takes the place of all other filters.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from bluejay.generation import candidates as filters
from bluejay.generation.candidates import Sampler
from bluejay.generation.sampler_chain import (
    ExcludeTopChoices,
    Filter,
    Mirostat,
    Penalties,
    Stage,
)
from bluejay.serving.fiction_fields import sequence_breakers
from bluejay.serving.kobold_bodies import GenerateBody, checked_order
from bluejay.text.text_samplers import BannedStrings, repeated_sequences
from bluejay.vocab.tokenizer import Tokenizer

Number = TypeVar("Number", int, float)


def kobold_stages(
    body: GenerateBody,
    tokenizer: Tokenizer,
    *,
    bias: Mapping[int, float],
    seed: int,
) -> Callable[[int], list[Stage]]:
    """Makes new stages for the sample of a number."""
    order = checked_order(body)

    def make(sample: int) -> list[Stage]:
        stages: list[Stage] = [Filter(filters.add_bias(bias))] if bias else []
        stages += _first(body, tokenizer)
        if body.mirostat == 2:
            stages += [_penalties(body), *_temperature(body)]
            stages.append(
                Mirostat(target=_or(body.mirostat_tau, 5.0), rate=_or(body.mirostat_eta, 0.1))
            )
        else:
            for number in order:
                stages += _STAGES[number](body)
        if probability := _or(body.xtc_probability, 0.0):
            stages.append(
                ExcludeTopChoices(
                    probability=probability,
                    threshold=_or(body.xtc_threshold, 0.1),
                    seed=(seed, sample),
                )
            )
        return stages

    return make


def _first(body: GenerateBody, tokenizer: Tokenizer) -> list[Stage]:
    stages: list[Stage] = []
    if _or(body.nsigma, 0.0) > 0:
        stages.append(Filter(partial(filters.top_n_sigma, n=_or(body.nsigma, 0.0))))
    if multiplier := _or(body.dry_multiplier, 0.0):
        stages.append(
            repeated_sequences(
                tokenizer,
                multiplier=multiplier,
                base=_or(body.dry_base, 1.75),
                allowed_length=_or(body.dry_allowed_length, 2),
                last_n=_or(body.dry_penalty_last_n, -1),
                breakers=sequence_breakers(body.dry_sequence_breakers),
            )
        )
    banned = [*(body.banned_tokens or ()), *(body.banned_strings or ())]
    if any(banned):
        stages.append(BannedStrings(tokenizer, banned))
    return stages


def _penalties(body: GenerateBody) -> Penalties:
    return Penalties(
        repetition=_or(body.rep_pen, 1.0),
        slope=_or(body.rep_pen_slope, 1.0),
        presence=_or(body.presence_penalty, 0.0),
        last_n=_or(body.rep_pen_range, -1),
    )


def _temperature(body: GenerateBody) -> list[Stage]:
    temperature, reach = _or(body.temperature, 1.0), _or(body.dynatemp_range, 0.0)
    sampler: Sampler = partial(filters.scale, temperature=temperature)
    if reach:
        low, high = sorted((max(0.0, temperature - reach), max(0.0, temperature + reach)))
        sampler = filters.dynamic_temperature(low, high, _or(body.dynatemp_exponent, 1.0))
    stages: list[Stage] = [Filter(sampler)]
    if factor := _or(body.smoothing_factor, 0.0):
        stages.append(Filter(filters.smooth(factor, _or(body.smoothing_curve, 1.0))))
    return stages


def _top_p_and_min_p(body: GenerateBody) -> list[Stage]:
    return [
        Filter(partial(filters.top_p, p=_or(body.top_p, 1.0))),
        Filter(partial(filters.min_p, p=_or(body.min_p, 0.0))),
    ]


_STAGES: Mapping[int, Callable[[GenerateBody], Sequence[Stage]]] = {
    0: lambda body: [Filter(partial(filters.top_k, k=_or(body.top_k, 0)))],
    1: lambda body: [Filter(partial(filters.top_a, a=_or(body.top_a, 0.0)))],
    2: _top_p_and_min_p,
    3: lambda body: [Filter(partial(filters.tail_free, z=_or(body.tfs, 1.0)))],
    4: lambda body: [Filter(partial(filters.typical, p=_or(body.typical, 1.0)))],
    5: _temperature,
    6: lambda body: [_penalties(body)],
}


def _or(value: Number | None, default: Number) -> Number:
    return default if value is None else value


_OFF: Mapping[str, Sequence[object]] = {
    "top_k": (None, 0),
    "top_p": (None, 1),
    "min_p": (None, 0),
    "typical": (None, 1),
    "tfs": (None, 1),
    "top_a": (None, 0),
    "nsigma": (None, 0, -1),
    "rep_pen": (None, 1),
    "presence_penalty": (None, 0),
    "dynatemp_range": (None, 0),
    "smoothing_factor": (None, 0),
    "mirostat": (None, 0),
    "dry_multiplier": (None, 0),
    "xtc_probability": (None, 0),
}


def needs_chain(body: GenerateBody) -> bool:
    """Whether more is asked for than a temperature."""
    is_off = all(getattr(body, name) in values for name, values in _OFF.items())
    return not is_off or any([*(body.banned_tokens or ()), *(body.banned_strings or ())])
