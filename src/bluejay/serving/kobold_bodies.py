"""What the Kobold API takes and answers, and how its samplers are a chain of ours.

Fields, meanings and neutral values are those of KoboldCpp's description (2025.06.03) and of
KoboldAI United. Nothing is ignored: what is not offered is taken at the value that turns it off and
refused by its name at any other.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from bluejay.serving.errors import ApiError
from bluejay.serving.fiction_fields import (
    MOST_BANNED,
    FictionFields,
    check_fiction,
    check_texts,
    require_ranges,
    unsupported,
)
from bluejay.serving.logprobs import ChatTokenLogprob
from bluejay.serving.routes import StrictBody
from bluejay.serving.sampling_fields import Positive, whole

DEFAULT_MAX_LENGTH: Final = 200
DEFAULT_ORDER: Final = (6, 0, 1, 3, 4, 2, 5)
NUM_LOGPROBS: Final = 5
KEY_CHARACTERS: Final = 64
_GUIDANCE = "guidance by a second prompt is not offered: leave it out."

REFUSED: Final = {
    "soft_prompt": "soft prompts are not offered.",
    "images": "the model does not see pictures.",
    "frmttriminc": "the text comes as it is written.",
    "frmtrmblln": "the text comes as it is written.",
    "frmtrmspch": "the text comes as it is written.",
    "frmtadsnsp": "the prompt is read as it is.",
    "singleline_mode": "set singleline instead.",
}


class GenerateBody(FictionFields, frozen=True, kw_only=True):
    """A request to continue a text. null is as if absent."""

    prompt: str
    memory: (
        Annotated[str, Meta(description="Stands first, and stays when the prompt is cut.")] | None
    ) = None
    max_length: Annotated[Positive, Meta(description=f"{DEFAULT_MAX_LENGTH} if absent.")] | None = (
        None
    )
    max_context_length: (
        Annotated[Positive, Meta(description="The context, if it is shorter than the model's.")]
        | None
    ) = None
    context_policy: (
        Annotated[
            Literal["refuse", "trim", "keep"],
            Meta(
                description="What happens to a text that does not fit with max_length into the"
                " context: it is refused, its oldest tokens are left out, or those behind memory,"
                " which is what happens if absent."
            ),
        ]
        | None
    ) = None
    n: Positive | None = None
    stop_sequence: str | list[str] | None = None
    trim_stop: Annotated[bool, Meta(description="false keeps the stop sequence.")] | None = None
    singleline: bool | None = None
    use_default_badwordsids: (
        Annotated[bool, Meta(description="The text never ends by itself.")] | None
    ) = None
    bypass_eos: Annotated[bool, Meta(description="The end of the text does not end it.")] | None = (
        None
    )
    grammar: Annotated[str, Meta(description="GBNF or Lark.")] | None = None
    genkey: Annotated[str, Meta(extra_json_schema={"maxLength": KEY_CHARACTERS})] | None = None
    logprobs: bool | None = None
    quiet: Annotated[bool, Meta(description="Taken: prompts are never logged.")] | None = None
    sampler_full_determinism: (
        Annotated[bool, Meta(description="Taken: a seed is always enough.")] | None
    ) = None
    model: str | None = None

    sampler_order: (
        Annotated[
            list[int],
            Meta(
                description="0 top-k, 1 top-a, 2 top-p and min-p, 3 tail-free, 4 typical,"
                " 5 temperature, 6 penalties: a permutation of all, or of 0 to 5 behind 6."
            ),
        ]
        | None
    ) = None
    sampler_seed: Annotated[int, whole(-1, 2**53, "A new one if absent, 0 or -1.")] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical: float | None = None
    nsigma: float | None = None
    rep_pen: float | None = None
    rep_pen_range: int | None = None
    rep_pen_slope: float | None = None
    presence_penalty: float | None = None
    banned_tokens: Annotated[list[str], Meta(description="Texts that do not come.")] | None = None
    logit_bias: dict[str, float] | None = None

    use_story: bool | None = None
    use_memory: bool | None = None
    use_authors_note: bool | None = None
    use_world_info: bool | None = None
    render_special: bool | None = None
    grammar_retain_state: bool | None = None
    replace_instruct_placeholders: bool | None = None
    disable_input_formatting: bool | None = None
    disable_output_formatting: bool | None = None
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    adaptive_target: float | None = None
    adaptive_decay: float | None = None


# A value that turns a field off (and that its clients send), and what to say of any other.
_NEUTRAL: Final[dict[str, tuple[Sequence[Any], str]]] = {
    "use_story": ((False,), "the server keeps no story: send the whole text as the prompt."),
    "use_memory": ((False,), "the server keeps no memory: send it as memory."),
    "use_authors_note": ((False,), "the server keeps no author's note: put it into the prompt."),
    "use_world_info": ((False,), "the server keeps no world info: put it into the prompt."),
    "render_special": ((False,), "special tokens are never a part of the text."),
    "grammar_retain_state": ((False,), "every text begins the grammar anew."),
    "replace_instruct_placeholders": ((False,), "put the real tags into the prompt."),
    "disable_input_formatting": ((True,), "the prompt is read as it is: send true."),
    "disable_output_formatting": ((True,), "the text comes as it is written: send true."),
    "guidance_scale": ((1,), _GUIDANCE),
    "negative_prompt": (("",), _GUIDANCE),
}
_RANGES: Final = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "typical": (0.0, 1.0),
    "top_k": (0, 2**31),
    "nsigma": (-1.0, 100.0),
    "rep_pen": (0.01, 100.0),
    "rep_pen_range": (-1, 2**31),
    "rep_pen_slope": (0.0, 10.0),
    "presence_penalty": (-10.0, 10.0),
    "sampler_seed": (-1, 2**53),
}


def check_generate(body: GenerateBody) -> None:
    """Refuse a sampler that is not there and a value out of its range, by name."""
    for name, (neutral, reason) in _NEUTRAL.items():
        value = getattr(body, name)
        if value is not None and value not in neutral:
            raise unsupported(name, value, reason)
    require_ranges(body, _RANGES)
    check_fiction(body)
    check_texts("banned_tokens", body.banned_tokens or (), MOST_BANNED)
    if body.adaptive_target is not None and body.adaptive_target > 0:
        raise unsupported("adaptive_target", body.adaptive_target, "send -1, which turns it off.")
    for name in ("n", "max_length", "max_context_length"):
        if (value := getattr(body, name)) is not None and value < 1:
            raise ApiError(400, f"{name} is {value}, but it must be at least 1.", param=name)
    checked_order(body)
    if body.genkey is not None and len(body.genkey) > KEY_CHARACTERS:
        raise ApiError(
            400,
            f"genkey has {len(body.genkey)} characters and may have {KEY_CHARACTERS}.",
            param="genkey",
        )


def checked_order(body: GenerateBody) -> tuple[int, ...]:
    """The samplers' order; penalties stand first where it leaves them out."""
    order = DEFAULT_ORDER if body.sampler_order is None else tuple(body.sampler_order)
    if sorted(order) == list(range(6)):
        return (6, *order)
    if sorted(order) != list(range(7)):
        raise ApiError(
            400,
            f"sampler_order is {list(order)[:10]}, but it must have each of 0 to 6 once, or each of"
            " 0 to 5.",
            param="sampler_order",
        )
    return order


class KoboldLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Of the tokens of a text, in order."""

    content: list[ChatTokenLogprob]


class GenerateResult(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A text."""

    text: str
    finish_reason: Literal["stop", "length"] | None = None
    logprobs: KoboldLogprobs | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class GenerateAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """As many as were asked for."""

    results: list[GenerateResult]


class StreamedToken(msgspec.Struct, frozen=True, kw_only=True):
    """What is new of a text."""

    token: str
    finish_reason: Literal["stop", "length"] | None


class KeyBody(StrictBody, frozen=True, kw_only=True):
    """Which generation is meant; the only one that runs, if absent or empty."""

    genkey: str | None = None


class TokenCountBody(StrictBody, frozen=True, kw_only=True):
    """A text. `special`, on if absent, counts the document start, too."""

    prompt: str
    special: bool | None = None


class TextResult(msgspec.Struct, frozen=True, kw_only=True):
    """A text."""

    result: str


class NumberResult(msgspec.Struct, frozen=True, kw_only=True):
    """A number."""

    value: int


class TokenCountResult(msgspec.Struct, frozen=True, kw_only=True):
    """How many tokens, and which."""

    value: int
    ids: list[int]


class AbortResult(msgspec.Struct, frozen=True, kw_only=True):
    """Whether a generation was ended."""

    success: bool


class LogprobsResult(msgspec.Struct, frozen=True, kw_only=True):
    """Those of a generation that asked for them; null without one."""

    logprobs: KoboldLogprobs | None
