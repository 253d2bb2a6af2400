"""The fields that text routes share: how ids are chosen, when a text ends, what it must match.

Ranges stand in the schema and are checked here rather than by msgspec, so that a refusal names the
value and what is allowed.
"""

import secrets
from collections.abc import Callable
from typing import Annotated, Any, Final, Literal

from msgspec import Meta

from bluejay.core.errors import BluejayError
from bluejay.generation.engine_requests import Constraint
from bluejay.generation.sampling_params import MAX_SEED, MAX_TOP_K, SamplingParams
from bluejay.serving.errors import ApiError
from bluejay.serving.grammars import compiled_grammar
from bluejay.serving.limits import Limits, RequestLimits
from bluejay.serving.routes import StrictBody
from bluejay.serving.samples import SampleOptions
from bluejay.serving.service import TextService
from bluejay.serving.writer_fields import WriterFields, check_writer, own_or_other
from bluejay.serving.writer_samplers import chain_maker
from bluejay.text.grammar import JSON_OBJECT, Grammar, json_schema_grammar, rules_grammar
from bluejay.vocab.quoting import quoted

MAX_TEMPERATURE: Final = 2.0
_SEED_BITS = 31


def whole(low: int, high: int, text: str | None = None) -> Meta:
    """A whole number from `low` to `high`, as the schema says it."""
    return Meta(description=text, extra_json_schema={"minimum": low, "maximum": high})


LARGEST: Final = 2**53  # beyond it clients in JavaScript cannot count
Positive = Annotated[int, whole(1, LARGEST)]
TimeoutMs = Annotated[
    int,
    whole(
        1,
        LARGEST,
        "An answer that is not finished after so many milliseconds is given up: 504, or an error in"
        " the stream. At most the server's --request-timeout.",
    ),
]
Temperature = Annotated[
    float,
    Meta(
        description="0 always takes the likeliest token; 1 if absent.",
        extra_json_schema={"minimum": 0, "maximum": MAX_TEMPERATURE},
    ),
]
Share = Annotated[float, Meta(extra_json_schema={"exclusiveMinimum": 0, "maximum": 1})]
MinP = Annotated[float, Meta(extra_json_schema={"minimum": 0, "exclusiveMaximum": 1})]
TopK = Annotated[int, whole(0, MAX_TOP_K, "0 is off.")]
Penalty = Annotated[float, Meta(extra_json_schema={"minimum": -2, "maximum": 2})]
Seed = Annotated[int, whole(0, MAX_SEED, "The same seed gives the same text. A new one if absent.")]
Bias = Annotated[
    dict[str, Annotated[float, Meta(extra_json_schema={"minimum": -100, "maximum": 100})]],
    Meta(
        description="Added to the scores of ids.",
        extra_json_schema={"propertyNames": {"pattern": "^[0-9]+$"}},
    ),
]
Stop = Annotated[
    str | list[str],
    Meta(
        description="The text ends before the first of these.", extra_json_schema={"minLength": 1}
    ),
]
Policy = Annotated[
    Literal["refuse", "trim", "keep"],
    Meta(
        description="What happens to a prompt that does not fit with max_tokens into the context:"
        " it is refused (if absent), its oldest tokens are left out, or those behind a beginning"
        " that context_keep marks. Of a conversation whole messages, never a system message that it"
        " begins with."
    ),
]
Keep = Annotated[
    str | Annotated[int, whole(0, LARGEST)],
    Meta(
        description="The beginning that stays: a text that the prompt begins with, or a number of"
        " tokens; of a conversation a number of messages."
    ),
]


class JsonSchemaFormat(StrictBody, frozen=True, kw_only=True):
    """OpenAI's wrapper of a schema. The text keeps to it, whatever `strict` says; `name` and
    `description` are for the client."""

    name: str
    schema: dict[str, Any] | bool
    description: str | None = None
    strict: bool | None = None


class TextFormat(StrictBody, frozen=True, kw_only=True, tag_field="type", tag="text"):
    """Any text."""


class JsonObjectFormat(StrictBody, frozen=True, kw_only=True, tag_field="type", tag="json_object"):
    """Any JSON object."""


class SchemaFormat(StrictBody, frozen=True, kw_only=True, tag_field="type", tag="json_schema"):
    """JSON that a schema describes."""

    json_schema: JsonSchemaFormat


ResponseFormat = TextFormat | JsonObjectFormat | SchemaFormat


class StreamOptions(StrictBody, frozen=True, kw_only=True):
    """`include_usage` adds one more event, without choices, that counts tokens."""

    include_usage: bool | None = None


class SamplingFields(WriterFields, frozen=True, kw_only=True):
    """What `/v1/completions` and `/v1/chat/completions` have in common. null is as if absent."""

    model: str | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    top_k: TopK | None = None
    min_p: MinP | None = None
    typical_p: Share | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Bias | None = None
    seed: Seed | None = None
    n: Positive | None = None
    stop: Stop | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: Annotated[str, Meta(description="Taken, and not used for anything.")] | None = None
    response_format: ResponseFormat | None = None
    grammar: Annotated[str, Meta(description="GBNF or Lark: the text matches it.")] | None = None
    adapter: Annotated[str, Meta(description="Fine-tuned weights, by name.")] | None = None
    timeout_ms: TimeoutMs | None = None
    ignore_eos: Annotated[bool, Meta(description="The ids that end a text do not.")] | None = None
    context_policy: Policy | None = None
    context_keep: Keep | None = None


_SAMPLING_NAMES = (
    *("temperature", "top_k", "top_p", "min_p", "typical_p", "repetition_penalty"),
    *("presence_penalty", "frequency_penalty", "seed"),
)


def sampling_params(service: TextService, fields: SamplingFields) -> SamplingParams:
    """How ids are chosen. What is absent is the model as it is, with a new seed."""
    check_writer(fields)
    chosen = {name: getattr(fields, name) for name in _SAMPLING_NAMES}
    chosen["repetition_penalty"] = own_or_other(fields, "repetition_penalty", 1.0)
    chosen = {name: value for name, value in chosen.items() if value is not None}
    chosen.setdefault("seed", secrets.randbits(_SEED_BITS))
    if chosen.get("temperature", 0) > MAX_TEMPERATURE:
        raise ApiError(
            400,
            f"temperature is {chosen['temperature']}, but it must be from 0 to"
            f" {MAX_TEMPERATURE:g}.",
            param="temperature",
        )
    bias = logit_bias(service, fields.logit_bias or {})
    try:
        return SamplingParams(**chosen, logit_bias=bias)
    except BluejayError as error:
        message = str(error)
        named = next((n for n in (*chosen, "logit_bias") if message.startswith(n)), None)
        raise ApiError(400, message, param=named) from None


def logit_bias(service: TextService, bias: dict[str, float]) -> dict[int, float]:
    """A bias with its ids as numbers."""
    service.limits.request.check("logit_bias", len(bias), param="logit_bias")
    found: dict[int, float] = {}
    for key, value in bias.items():
        is_id = key.isascii() and key.isdecimal() and len(key) < 12
        if not is_id or int(key) >= len(service.allowed) or not service.allowed[int(key)]:
            raise ApiError(
                400,
                f"logit_bias names {quoted(key)}, but ids of {service.model} are whole numbers from"
                f" 0 to {service.tokenizer.vocab_size - 1}.",
                param="logit_bias",
            )
        found[int(key)] = value
    return found


def stop_strings(limits: RequestLimits, stop: str | list[str] | None) -> tuple[str, ...]:
    """Strings that end a text."""
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    limits.check("stop_strings", len(stops), param="stop")
    for text in stops:
        if not text:
            raise ApiError(400, "A stop string is empty: leave it out.", param="stop")
        limits.check("stop_characters", len(text), param="stop")
    return stops


def sample_count(limits: RequestLimits, count: int | None, *, param: str = "n") -> int:
    """How many samples a prompt gets: 1 if absent."""
    if count is None:
        return 1
    if count < 1:
        raise ApiError(400, f"{param} is {quoted(count)}, but it must be at least 1.", param=param)
    limits.check("samples", count, param=param)
    return count


def alternative_count(limits: RequestLimits, count: int, *, param: str) -> int:
    """How many alternatives come with each token; refuses too few and too many."""
    if count < 0:
        raise ApiError(400, f"{param} is {quoted(count)}, but it must be at least 0.", param=param)
    limits.check("logprobs", count, param=param)
    return count


def timeout_seconds(limits: Limits, timeout_ms: int | None) -> float | None:
    """After how long the request is given up; None leaves it to the server."""
    if timeout_ms is None:
        return None
    if timeout_ms < 1:
        raise ApiError(
            400,
            f"timeout_ms is {quoted(timeout_ms)}, but it must be at least 1.",
            param="timeout_ms",
        )
    limits.wait.check("request_seconds", timeout_ms / 1000, param="timeout_ms")
    return timeout_ms / 1000


def require_stream(fields: SamplingFields) -> None:
    """Refuse options of a stream where there is none."""
    if fields.stream_options is not None and not fields.stream:
        raise ApiError(
            400, "stream_options is only of use with stream: set it.", param="stream_options"
        )


def wants_usage(fields: SamplingFields) -> bool:
    """Whether a stream ends with a count of its tokens."""
    return fields.stream_options is not None and bool(fields.stream_options.include_usage)


async def sample_options(
    service: TextService, fields: SamplingFields, *, max_tokens: int, tenant: str
) -> SampleOptions:
    """What the fields ask of every sample."""
    sampling = sampling_params(service, fields)
    constraint = await constraint_maker(service, fields)
    return SampleOptions(
        max_tokens=max_tokens,
        sampling=sampling,
        stops=stop_strings(service.limits.request, fields.stop),
        stop_ids=frozenset() if fields.ignore_eos else None,
        constraint=constraint,
        chain=await chain_maker(service, fields, sampling, constraint),
        tenant=tenant,
        adapter=service.adapter_of(fields.model, fields.adapter),
    )


async def constraint_maker(
    service: TextService, fields: SamplingFields
) -> Callable[[], Constraint] | None:
    """What makes the constraint of each sample; None where any text will do."""
    has_format = fields.response_format is not None and not isinstance(
        fields.response_format, TextFormat
    )
    if fields.grammar is not None and has_format:
        raise ApiError(
            400, "grammar and response_format both say what the text is: send one.", param="grammar"
        )
    param = "grammar" if fields.grammar is not None else "response_format"
    try:
        grammar = _grammar(fields)
    except BluejayError as error:
        raise ApiError(400, str(error), param=param) from None
    if grammar is None:
        return None
    return (await compiled_grammar(service, grammar, param=param)).start


def _grammar(fields: SamplingFields) -> Grammar | None:
    if fields.grammar is not None:
        return rules_grammar(fields.grammar)
    match fields.response_format:
        case JsonObjectFormat():
            return JSON_OBJECT
        case SchemaFormat(json_schema=wrapped):
            return json_schema_grammar(wrapped.schema)
        case _:
            return None
