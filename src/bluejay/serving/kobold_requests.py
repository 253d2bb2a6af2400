"""From a body of the Kobold API to samples that the engine is asked for."""

import secrets
from dataclasses import dataclass, replace
from typing import Final

from bluejay.core.errors import BluejayError
from bluejay.generation.sampling_params import SamplingParams
from bluejay.serving.chains import ChainMaker
from bluejay.serving.errors import ApiError
from bluejay.serving.grammars import compiled_grammar
from bluejay.serving.kobold_bodies import (
    DEFAULT_MAX_LENGTH,
    NUM_LOGPROBS,
    GenerateBody,
    check_generate,
)
from bluejay.serving.kobold_samplers import kobold_stages, needs_chain
from bluejay.serving.prompts import Prompt, fit_prompt, read_prompts, require_room
from bluejay.serving.samples import SampleOptions
from bluejay.serving.sampling_fields import logit_bias, sample_count
from bluejay.serving.service import TextService
from bluejay.text.grammar import rules_grammar
from bluejay.text.prompt import fit_context

MOST_STOPS: Final = 32
"""Clients of stories send one for each name; the limit of other routes holds if it is larger."""


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """A prompt and what is asked of its samples; `kept_stops` end a text and stay in it."""

    prompt: Prompt
    options: SampleOptions
    seed: int
    kept_stops: tuple[str, ...]


async def read_generate(
    service: TextService, body: GenerateBody, *, tenant: str
) -> GenerateRequest:
    """ApiError for a body that cannot be carried out."""
    check_generate(body)
    stops = _stops(service, body)
    keeps_stops = body.trim_stop is False
    seed = body.sampler_seed or -1
    seed = seed if seed > 0 else secrets.randbits(31)
    num_samples = sample_count(service.limits.request, body.n)
    prompt = await _prompt(service, body)
    require_room(service, [prompt], num_samples)
    options = SampleOptions(
        max_tokens=_max_length(body),
        num_samples=num_samples,
        stops=() if keeps_stops else stops,
        stop_ids=frozenset() if body.bypass_eos else None,
        num_alternatives=NUM_LOGPROBS if body.logprobs else 0,
        tenant=tenant,
        adapter=service.adapter_of(body.model),
    )
    return GenerateRequest(
        prompt=prompt,
        options=await _sampled(service, body, options, seed),
        seed=seed,
        kept_stops=stops if keeps_stops else (),
    )


def _max_length(body: GenerateBody) -> int:
    return DEFAULT_MAX_LENGTH if body.max_length is None else body.max_length


def _stops(service: TextService, body: GenerateBody) -> tuple[str, ...]:
    """The stop sequences; an empty one, which some clients send, is none."""
    given = body.stop_sequence or ()
    stops = [text for text in ([given] if isinstance(given, str) else given) if text]
    if body.singleline:
        stops.append("\n")
    limits = service.limits.request
    if len(stops) > MOST_STOPS:
        limits.check("stop_strings", len(stops), param="stop_sequence")
    for text in stops:
        limits.check("stop_characters", len(text), param="stop_sequence")
    return tuple(stops)


async def _prompt(service: TextService, body: GenerateBody) -> Prompt:
    """Memory and prompt, the oldest tokens behind the memory left out where they do not fit."""
    context = min(body.max_context_length or service.context_length, service.context_length)
    max_length = _max_length(body)
    if max_length >= context:
        raise ApiError(
            400,
            f"max_length is {max_length}, but the context holds {context} tokens, the prompt's and"
            " the new ones: lower max_length.",
            param="max_length",
        )
    memory = body.memory or ""
    if body.context_policy == "keep" and not memory:
        raise ApiError(
            400,
            "context_policy 'keep' keeps memory, but there is none: send memory, or 'trim'.",
            param="context_policy",
        )
    [prompt] = await read_prompts(service, (memory + body.prompt) or None)
    if body.context_policy == "refuse" and len(prompt.ids) > context - max_length:
        raise ApiError(
            400,
            f"A prompt of {len(prompt.ids)} tokens and {max_length} new ones exceed the context of"
            f" {context} tokens: shorten the prompt, lower max_length, or let it be trimmed.",
            param="prompt",
            code="context_length_exceeded",
        )
    keeps = bool(memory) and body.context_policy != "trim"
    policy, keep = ("keep", memory) if keeps else ("trim", None)
    try:
        # Only to learn how many tokens the memory is.
        found = fit_prompt(service, prompt, max_tokens=0, policy=policy, keep=keep)
        ids = fit_context(
            found.ids,
            context_length=context,
            max_tokens=max_length,
            policy="trim",
            num_kept=found.num_kept,
        )
    except (ApiError, BluejayError):
        raise ApiError(
            400,
            f"The memory and {max_length} new tokens fill the context of {context} tokens and"
            " leave no room for the prompt: shorten the memory, or lower max_length.",
            param="memory",
        ) from None
    return Prompt(ids=tuple(ids), num_hidden=found.num_hidden, num_kept=found.num_kept)


async def _sampled(
    service: TextService, body: GenerateBody, options: SampleOptions, seed: int
) -> SampleOptions:
    """The options with how ids are chosen."""
    grammar = None
    if body.grammar:
        grammar = await compiled_grammar(service, rules_grammar(body.grammar), param="grammar")
    bias = logit_bias(service, body.logit_bias or {})
    banned = service.conventions.stop_ids if body.use_default_badwordsids else frozenset[int]()
    try:
        start = None if grammar is None else grammar.start
        if not needs_chain(body) and not banned:
            temperature = 1.0 if body.temperature is None else body.temperature
            sampling = SamplingParams(temperature=temperature, logit_bias=bias, seed=seed)
            return replace(options, sampling=sampling, constraint=start)
        SamplingParams(logit_bias=bias)
    except BluejayError as error:
        raise ApiError(400, str(error), param=str(error).split()[0]) from None
    stages = kobold_stages(body, service.tokenizer, bias=bias, seed=seed)
    chain = ChainMaker(service, stages, constraint=start, banned=banned)
    return replace(options, chain=chain, sampling=SamplingParams(seed=seed))
