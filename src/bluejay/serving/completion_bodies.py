"""What `/v1/completions` takes and answers: OpenAI's legacy shape with our additions."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from bluejay.serving.answers import CompletionUsage
from bluejay.serving.logprobs import CompletionLogprobs
from bluejay.serving.sampling_fields import LARGEST, Positive, SamplingFields, whole
from bluejay.serving.writer_fields import OTHER_NAMES

DEFAULT_MAX_TOKENS = 16
REFUSED = {
    **OTHER_NAMES,
    "min_tokens": "set logit_bias of the tokens that end a text instead.",
    "prompt_logprobs": "set echo and logprobs instead.",
    "bad_words": "set banned_strings instead.",
    "guided_json": "set response_format instead.",
    "guided_regex": "set grammar instead.",
    "guided_grammar": "set grammar instead.",
}


class CompletionBody(SamplingFields, frozen=True, kw_only=True):
    """A request to continue texts. null is as if absent."""

    prompt: Annotated[
        str | list[str | int | list[int]] | None,
        Meta(
            description="A text, a list of texts, the ids of one prompt, or a list of such lists."
            " A new document if absent."
        ),
    ] = None
    suffix: str | None = None
    max_tokens: (
        Annotated[int, whole(0, LARGEST, "16 if absent; 0 only scores the prompt (with echo).")]
        | None
    ) = None
    best_of: Positive | None = None
    logprobs: Annotated[int, whole(0, 20, "How many alternatives come with each token.")] | None = (
        None
    )
    echo: Annotated[bool, Meta(description="The prompt stands before each text.")] | None = None


class CompletionChoice(msgspec.Struct, frozen=True, kw_only=True):
    """A text, or what is new of it in an event of a stream."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class CompletionAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """An answer, or an event of a stream. Choices of a prompt follow each other."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: CompletionUsage | None = None
