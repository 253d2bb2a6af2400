"""What `/v1/responses` takes and answers: the part of OpenAI's newer interface that is text."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from bluejay.serving.logprobs import ChatTokenLogprob
from bluejay.serving.routes import StrictBody
from bluejay.serving.sampling_fields import (
    JsonObjectFormat,
    JsonSchemaFormat,
    Positive,
    ResponseFormat,
    SchemaFormat,
    Seed,
    Share,
    Temperature,
    TextFormat,
    TimeoutMs,
    whole,
)
from bluejay.serving.writer_fields import WriterFields

# What only the other two routes of OpenAI take.
SAMPLER_NAMES = (
    *WriterFields.__struct_fields__,
    *("top_k", "min_p", "typical_p", "repetition_penalty", "presence_penalty"),
    *("frequency_penalty", "logit_bias"),
)
_STATELESS = "nothing is stored: send the whole conversation as input."
_REUSED = "prompts are reused as long as there is room."
_NO_TOOLS = "these models were not trained to call tools."
REFUSED = {
    "previous_response_id": _STATELESS,
    "conversation": _STATELESS,
    "background": _STATELESS,
    "background_options": _STATELESS,
    "access_programs": "there are none: a key opens all that is served.",
    "context_management": "set truncation to 'auto' instead.",
    "image": "this server answers with text only.",
    "moderation": "nothing is judged: check texts before and after.",
    "metadata": _STATELESS,
    "prompt": "send instructions and input.",
    "tool_choice": _NO_TOOLS,
    "parallel_tool_calls": _NO_TOOLS,
    "max_tool_calls": _NO_TOOLS,
    "reasoning": "these models do not reason apart from their answer.",
    "service_tier": "there is one tier.",
    "prompt_cache_key": "prompts are reused without one.",
    "prompt_cache_options": _REUSED,
    "prompt_cache_retention": _REUSED,
    "safety_identifier": "nobody is told about users.",
    "stream_options": "usage comes with the last event.",
    "messages": "send input, or use /v1/chat/completions.",
    "max_tokens": "set max_output_tokens instead.",
    "n": "use /v1/chat/completions.",
    "stop": "use /v1/chat/completions.",
    **dict.fromkeys(SAMPLER_NAMES, "use /v1/chat/completions."),
}


class InputText(StrictBody, frozen=True, kw_only=True, tag_field="type", tag="input_text"):
    """What somebody said; images and files are refused."""

    text: str


class OutputText(StrictBody, frozen=True, kw_only=True, tag_field="type", tag="output_text"):
    """What an earlier answer said, as it was answered."""

    text: str
    annotations: Annotated[list[Any], Meta(max_length=0)] = msgspec.field(default_factory=list)
    logprobs: (
        Annotated[list[Any], Meta(description="Taken: they say nothing to a model.")] | None
    ) = None


class InputMessage(StrictBody, frozen=True, kw_only=True):
    """A message, or an earlier answer sent back; its `id` and `status` say nothing to a model."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[InputText | OutputText]
    type: Literal["message"] = "message"
    id: str | None = None
    status: Literal["completed", "incomplete", "in_progress"] | None = None

    @property
    def text(self) -> str:
        """All that was said."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class FlatSchemaFormat(
    JsonSchemaFormat, frozen=True, kw_only=True, tag_field="type", tag="json_schema"
):
    """JSON that a schema describes; here the schema is not wrapped."""


class TextConfig(StrictBody, frozen=True, kw_only=True):
    """What the text is."""

    format: TextFormat | JsonObjectFormat | FlatSchemaFormat | None = None

    def response_format(self) -> ResponseFormat | None:
        """In the form that chat has for it."""
        if isinstance(self.format, FlatSchemaFormat):
            flat = self.format
            wrapped = JsonSchemaFormat(name=flat.name, schema=flat.schema)
            return SchemaFormat(json_schema=wrapped)
        return self.format


class ResponseBody(StrictBody, frozen=True, kw_only=True):
    """A request for an answer. null is as if absent."""

    input: Annotated[
        str | Annotated[list[InputMessage], Meta(min_length=1)],
        Meta(description="A text, or a conversation, oldest first."),
    ]
    model: str | None = None
    instructions: Annotated[str, Meta(description="The system message.")] | None = None
    max_output_tokens: Annotated[Positive, Meta(description="What fits, if absent.")] | None = None
    temperature: Temperature | None = None
    top_p: Share | None = None
    seed: Seed | None = None
    stream: bool | None = None
    text: TextConfig | None = None
    truncation: (
        Annotated[
            Literal["disabled", "auto"],
            Meta(description="auto leaves out the oldest messages where not all fit."),
        ]
        | None
    ) = None
    store: Annotated[bool, Meta(description="Nothing is stored: true is refused.")] | None = None
    tools: Annotated[list[Any], Meta(max_length=0)] | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: (
        Annotated[
            int,
            whole(
                0, 20, "So many alternatives come with each token, if include asks for logprobs."
            ),
        ]
        | None
    ) = None
    user: Annotated[str, Meta(description="Taken, and not used for anything.")] | None = None
    adapter: Annotated[str, Meta(description="Fine-tuned weights, by name.")] | None = None
    timeout_ms: TimeoutMs | None = None


class AnswerText(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="output_text"):
    """The text of the answer."""

    text: str
    annotations: list[Any] = []
    logprobs: list[ChatTokenLogprob] = []


class AnswerItem(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="message"):
    """The answer."""

    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    content: list[AnswerText]
    role: Literal["assistant"] = "assistant"


class IncompleteDetails(msgspec.Struct, frozen=True, kw_only=True):
    """Why the answer is not complete."""

    reason: Literal["max_output_tokens"] = "max_output_tokens"


class InputTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """`cached_tokens` of the input were not computed again."""

    cached_tokens: int
    cache_write_tokens: int = 0


class OutputTokensDetails(msgspec.Struct, frozen=True, kw_only=True):
    """None of the tokens is hidden."""

    reasoning_tokens: int = 0


class ResponseUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens of a request."""

    input_tokens: int
    input_tokens_details: InputTokensDetails
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    total_tokens: int


class ResponseAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer, whole or so far."""

    id: str
    created_at: int
    status: Literal["in_progress", "completed", "incomplete"]
    model: str
    output: list[AnswerItem]
    instructions: str | None
    max_output_tokens: int | None
    temperature: float
    top_p: float
    text: dict[str, Any]
    truncation: Literal["disabled", "auto"]
    top_logprobs: int = 0
    incomplete_details: IncompleteDetails | None = None
    usage: ResponseUsage | None = None
    object: Literal["response"] = "response"
    error: None = None
    previous_response_id: None = None
    store: bool = False
    parallel_tool_calls: bool = False
    tool_choice: Literal["none"] = "none"
    tools: list[Any] = []
