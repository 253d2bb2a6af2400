"""The samplers of writers of fiction on OpenAI's routes as a chain.

Only where one of them is on, or an order is asked for: else the engine's own sampling stays.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Final

from bluejay.generation import candidates as filters
from bluejay.generation.engine_requests import Constraint
from bluejay.generation.sampler_chain import Filter, Stage
from bluejay.generation.sampling_params import SamplingParams
from bluejay.serving.chains import ChainMaker
from bluejay.serving.errors import ApiError
from bluejay.serving.fiction_fields import sequence_breakers
from bluejay.serving.named_samplers import SamplerSettings, named_stages
from bluejay.serving.service import TextService
from bluejay.serving.writer_fields import (
    DEFAULT_ORDER,
    MIROSTAT_ORDER,
    WriterFields,
    switched_on,
    writer_values,
)

# What the engine does by itself, in the order of a chain that has nothing else.
_ENGINES_OWN: Final = frozenset(["penalties", "temperature", "top_k", "top_p", "min_p", "typ_p"])
_OTHER_NAMES: Final[Mapping[str, str]] = {"typical_p": "typ_p", "tail_free": "tfs"}


async def chain_maker(
    service: TextService,
    fields: WriterFields,
    sampling: SamplingParams,
    constraint: Callable[[], Constraint] | None,
) -> ChainMaker | None:
    """What makes the chain of each sample; None where the engine needs none.

    The fields have been checked one by one; ApiError 400 for samplers that exclude each other.
    """
    values = writer_values(fields, sampling)
    is_on = switched_on(values, bans=any(fields.banned_strings or ()))
    _check_combinations(values, is_on)
    order = _order(fields, is_on, values)
    if not _needs_chain(fields, values, is_on):
        return None
    settings = partial(
        SamplerSettings,
        values=values,
        tokenizer=service.tokenizer,
        breakers=sequence_breakers(fields.dry_sequence_breakers),
        banned=tuple(fields.banned_strings or ()),
        counts_prompt=False,
    )

    def stages(sample: int) -> Sequence[Stage]:
        found = settings(seed=(sampling.seed, sample))
        bias: list[Stage] = []
        if sampling.logit_bias:
            bias = [Filter(filters.add_bias(sampling.logit_bias))]
        return [*bias, *(stage for name in order for stage in named_stages(name, found))]

    # What they look for in the whole vocabulary is found here, off the event loop, and kept.
    await asyncio.to_thread(stages, 0)
    return ChainMaker(service, stages, constraint=constraint)


def _needs_chain(
    fields: WriterFields, values: Mapping[str, float], is_on: Mapping[str, str]
) -> bool:
    if fields.samplers is not None or values["mirostat"]:
        return True
    if is_on.keys() - _ENGINES_OWN or is_on.get("temperature") == "dynatemp_range":
        return True
    has_range = values["repetition_last_n"] >= 0 and values["repetition_penalty"] != 1
    filtered = is_on.keys() - {"penalties", "temperature"}
    return has_range or bool(fields.temperature_last and "temperature" in is_on and filtered)


def _order(
    fields: WriterFields, is_on: Mapping[str, str], values: Mapping[str, float]
) -> Sequence[str]:
    """The samplers in the order that is asked for."""
    if fields.samplers is not None:
        return _asked_order(fields, is_on, values)
    order = MIROSTAT_ORDER if values["mirostat"] else DEFAULT_ORDER
    if not fields.temperature_last:
        return order
    last = ("temperature", "smoothing", "mirostat")
    return [*_without(order, last), *(name for name in last if name in order)]


def _asked_order(
    fields: WriterFields, is_on: Mapping[str, str], values: Mapping[str, float]
) -> Sequence[str]:
    assert fields.samplers is not None
    for other, is_there in (
        ("temperature_last", fields.temperature_last),
        ("mirostat", values["mirostat"]),
    ):
        if is_there:
            raise ApiError(
                400,
                f"samplers and {other} both say which samplers run in which order: send one.",
                param="samplers",
            )
    order = [_OTHER_NAMES.get(name, name) for name in fields.samplers]
    for at, name in enumerate(order):
        if name not in DEFAULT_ORDER:
            raise ApiError(
                400,
                f"samplers has {name[:40]!r}, but there are {', '.join(DEFAULT_ORDER)}.",
                param="samplers",
            )
        if name in order[:at]:
            raise ApiError(400, f"samplers has {name!r} twice: leave one out.", param="samplers")
    for name, field in is_on.items():
        if name not in order:
            raise ApiError(
                400,
                f"samplers leaves out {name!r}, but {field} asks for it: add it, or leave {field}"
                " out.",
                param="samplers",
            )
    return order


def _check_combinations(values: Mapping[str, float], is_on: Mapping[str, str]) -> None:
    """Refuse samplers that have nothing to do, and filters beside mirostat."""
    if "dry" in is_on and values["dry_penalty_last_n"] == 0:
        raise ApiError(
            400,
            "dry_penalty_last_n is 0, so that DRY has no token to look at: send -1 for all of them,"
            " or leave dry_multiplier out.",
            param="dry_penalty_last_n",
        )
    if values["repetition_penalty"] != 1 and values["repetition_last_n"] == 0:
        raise ApiError(
            400,
            "repeat_last_n is 0, so that the repetition penalty has no token to look at: send -1"
            " for all of them, or leave the penalty out.",
            param="repeat_last_n",
        )
    if values["mirostat"]:
        for name, field in is_on.items():
            if name not in MIROSTAT_ORDER:
                raise ApiError(
                    400,
                    f"mirostat takes the place of all other filters, but {field} is"
                    f" {values[field]}: leave {field} out, or mirostat.",
                    param=field,
                )
    if values["temperature_high"] == 0:
        for name, field in (("mirostat", "mirostat"), ("xtc", "xtc_probability")):
            if name in is_on or values.get(name):
                raise ApiError(
                    400,
                    f"{field} has nothing to choose from at temperature 0, which always takes the"
                    f" likeliest token: raise the temperature, or leave {field} out.",
                    param=field,
                )


def _without(names: Iterable[str], others: Sequence[str]) -> list[str]:
    return [name for name in names if name not in others]
