"""What `/infill` takes, in llama.cpp's names, and how its samplers are a chain of ours."""

from collections.abc import Callable
from typing import Annotated, Any, Final

import msgspec
from msgspec import Meta

from bluejay.generation.sampler_chain import Stage
from bluejay.serving.errors import ApiError
from bluejay.serving.fiction_fields import require_ranges, sequence_breakers
from bluejay.serving.named_samplers import SamplerSettings, named_stages
from bluejay.serving.routes import StrictBody
from bluejay.serving.sampling_fields import whole
from bluejay.vocab.tokenizer import Tokenizer

DEFAULT_N_PREDICT: Final = 128
DEFAULT_SAMPLERS: Final = (
    *("penalties", "dry", "top_n_sigma", "top_k", "typ_p", "top_p", "min_p", "xtc"),
    "temperature",
)
SAMPLERS: Final = (*DEFAULT_SAMPLERS, "typical_p", "infill")
_NOT_HERE: Final = "only /v1/completions, /v1/chat/completions and the Kobold API have it."
REFUSED: Final = {
    "mirostat_mode": _NOT_HERE,
    "mirostat_tau": _NOT_HERE,
    "mirostat_eta": _NOT_HERE,
    "tfs": _NOT_HERE,
    "tfs_z": _NOT_HERE,
    "top_a": _NOT_HERE,
    "banned_strings": _NOT_HERE,
    "n_probs": "the answer is text only: use /v1/completions for log probabilities.",
    "return_tokens": "the answer is text only: use /tokenize.",
    "timings_per_token": "timings come once, with the answer.",
    "return_progress": "the answer comes at once.",
    "post_sampling_probs": "the answer is text only.",
    "mirostat": "use top_k, top_p or min_p.",
    "n_keep": "the end of the prefix is what is kept.",
    "n_discard": "the context is not shifted.",
    "lora": "choose fine-tuned weights with model.",
    "repo": "give other files as input_extra.",
}


class InfillExtra(StrictBody, frozen=True, kw_only=True):
    """Text of another file that may be of use; `time` is the client's own."""

    text: str
    filename: str | None = None
    time: Any = None


class InfillBody(StrictBody, frozen=True, kw_only=True):
    """The text before and after the cursor. null is as if absent."""

    input_prefix: str
    input_suffix: str
    input_extra: list[InfillExtra] | None = None
    prompt: Annotated[str, Meta(description="The cursor's line up to the cursor.")] | None = None
    n_predict: (
        Annotated[int, whole(-1, 2**31, "128 if absent; -1 is all that fits; 0 only reads.")] | None
    ) = None
    n_indent: (
        Annotated[int, whole(0, 10_000, "A new line with less white space ends the text.")] | None
    ) = None
    stop: str | list[str] | None = None
    t_max_prompt_ms: (
        Annotated[
            int,
            whole(0, 2**31, "Without a first token by then the text stays empty; 0 is no limit."),
        ]
        | None
    ) = None
    t_max_predict_ms: (
        Annotated[
            int,
            whole(0, 2**31, "The text ends so long after its first token, once it has a new line."),
        ]
        | None
    ) = None
    response_fields: (
        Annotated[list[str], Meta(description="Only these; a/b is b of a, under the name a/b.")]
        | None
    ) = None
    stream: bool | None = None
    cache_prompt: Annotated[bool, Meta(description="Taken: it changes no text.")] | None = None
    id_slot: Annotated[int, Meta(description="Taken: any free slot will do.")] | None = None
    model: str | None = None
    seed: Annotated[int, whole(-1, 2**53, "A new one if absent or -1.")] | None = None

    samplers: Annotated[list[str], Meta(description="Which run, in order.")] | None = None
    temperature: float | None = None
    dynatemp_range: float | None = None
    dynatemp_exponent: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    top_n_sigma: float | None = None
    xtc_probability: float | None = None
    xtc_threshold: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    dry_multiplier: float | None = None
    dry_base: float | None = None
    dry_allowed_length: int | None = None
    dry_penalty_last_n: int | None = None
    dry_sequence_breakers: list[str] | None = None
    ignore_eos: Annotated[bool, Meta(description="The text never ends by itself.")] | None = None
    grammar: Annotated[str, Meta(description="GBNF or Lark.")] | None = None
    json_schema: dict[str, Any] | None = None


class InfillTimings(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens and milliseconds; the queue counts with the prompt."""

    cache_n: int
    prompt_n: int
    prompt_ms: float
    prompt_per_token_ms: float
    prompt_per_second: float
    predicted_n: int
    predicted_ms: float
    predicted_per_token_ms: float
    predicted_per_second: float


class InfillAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The text that goes between, and how it came about."""

    index: int
    content: str
    model: str
    stop: bool
    stop_type: str
    stopping_word: str
    has_new_line: bool
    truncated: bool
    tokens_predicted: int
    tokens_evaluated: int
    tokens_cached: int
    timings: InfillTimings


# llama.cpp's documented defaults, with the range that is taken.
_NUMBERS: Final[dict[str, tuple[float, float, float]]] = {
    "temperature": (0.8, 0.0, 100.0),
    "dynatemp_range": (0.0, 0.0, 100.0),
    "dynatemp_exponent": (1.0, 0.0, 100.0),
    "top_k": (40, 0, 2**31),
    "top_p": (0.95, 0.0, 1.0),
    "min_p": (0.05, 0.0, 1.0),
    "typical_p": (1.0, 0.0, 1.0),
    "top_n_sigma": (-1.0, -1.0, 100.0),
    "xtc_probability": (0.0, 0.0, 1.0),
    "xtc_threshold": (0.1, 0.0, 1.0),
    "repeat_penalty": (1.0, 0.01, 100.0),
    "repeat_last_n": (64, -1, 2**31),
    "presence_penalty": (0.0, -10.0, 10.0),
    "frequency_penalty": (0.0, -10.0, 10.0),
    "dry_multiplier": (0.0, 0.0, 100.0),
    "dry_base": (1.75, 0.0, 100.0),
    "dry_allowed_length": (2, 0, 2**31),
    "dry_penalty_last_n": (-1, -1, 2**31),
}
_BOUNDS: Final[dict[str, tuple[int, int]]] = {
    "n_predict": (-1, 2**31),
    "n_indent": (0, 10_000),
    "t_max_prompt_ms": (0, 2**31),
    "t_max_predict_ms": (0, 2**31),
    "seed": (-1, 2**53),
}


def check_infill(body: InfillBody) -> None:
    """Refuse a value out of its range, and a sampler that is not there, by name."""
    ranges = {name: (low, high) for name, (_, low, high) in _NUMBERS.items()} | _BOUNDS
    require_ranges(body, ranges)
    sequence_breakers(body.dry_sequence_breakers)
    for name in body.samplers or ():
        if name not in SAMPLERS:
            raise ApiError(
                400,
                f"samplers has {name[:40]!r}, but there are {', '.join(SAMPLERS)}.",
                param="samplers",
            )
    if body.stream:
        raise ApiError(
            400,
            "stream is not supported: the text comes at once, send false.",
            param="stream",
            code="unsupported_field",
        )
    if body.grammar and body.json_schema is not None:
        raise ApiError(
            400, "grammar and json_schema both say what the text is: send one.", param="grammar"
        )


def infill_stages(
    body: InfillBody, tokenizer: Tokenizer, *, stop_ids: frozenset[int], seed: int
) -> Callable[[int], list[Stage]]:
    """Makes new stages for the sample of a number."""
    names = DEFAULT_SAMPLERS if body.samplers is None else body.samplers
    values = {
        name: default if (given := getattr(body, name)) is None else given
        for name, (default, _, _) in _NUMBERS.items()
    }
    temperature, reach = values["temperature"], values["dynatemp_range"]
    values |= {
        "temperature_low": max(0.0, temperature - reach),
        "temperature_high": temperature + reach,
        "repetition_penalty": values["repeat_penalty"],
        "repetition_last_n": values["repeat_last_n"],
    }
    breakers = sequence_breakers(body.dry_sequence_breakers)

    def make(sample: int) -> list[Stage]:
        settings = SamplerSettings(
            values=values,
            tokenizer=tokenizer,
            seed=(seed, sample),
            breakers=breakers,
            stop_ids=stop_ids,
        )
        return [stage for name in names for stage in named_stages(name, settings)]

    return make
