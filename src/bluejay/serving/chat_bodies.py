"""What `/v1/chat/completions` takes and answers."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from bluejay.serving.answers import CompletionUsage
from bluejay.serving.logprobs import ChatLogprobs
from bluejay.serving.routes import StrictBody
from bluejay.serving.sampling_fields import Positive, SamplingFields, whole
from bluejay.serving.writer_fields import OTHER_NAMES

_TEXT_ONLY = "this server answers with text only."
_NO_TOOLS = "these models were not trained to call tools."
REFUSED = {
    **OTHER_NAMES,
    "audio": _TEXT_ONLY,
    "prediction": "it is not needed: text that repeats the prompt is drafted anyway.",
    "tools": _NO_TOOLS,
    "tool_choice": _NO_TOOLS,
    "parallel_tool_calls": _NO_TOOLS,
    "functions": _NO_TOOLS,
    "function_call": _NO_TOOLS,
    "web_search_options": "this server never fetches anything.",
    "reasoning_effort": "these models do not reason apart from their answer.",
    "verbosity": "say in a message how long the answer should be.",
    "metadata": "nothing is stored.",
    "service_tier": "there is one tier.",
    "prompt_cache_key": "prompts are reused without one.",
    "moderation": "nothing is judged: check texts before and after.",
    "prompt_cache_options": "prompts are reused as long as there is room.",
    "prompt_cache_retention": "prompts are reused as long as there is room.",
    "safety_identifier": "nobody is told about users.",
    "echo": "only /v1/completions has it.",
    "suffix": "only /v1/completions has it.",
    "best_of": "only /v1/completions has it.",
    "prompt": "send messages, or use /v1/completions.",
}


class TextPart(StrictBody, frozen=True, kw_only=True):
    """A part of what is said; other kinds than text are refused."""

    type: Literal["text"]
    text: str


class Message(StrictBody, frozen=True, kw_only=True):
    """What was said. `developer` is another word for `system`. Fields that must be null are those
    that clients send back from answers."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    refusal: None = None
    tool_calls: None = None
    function_call: None = None
    audio: None = None

    @property
    def text(self) -> str:
        """All that was said."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatBody(SamplingFields, frozen=True, kw_only=True):
    """A request for the next answer of a conversation. null is as if absent."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_tokens: Annotated[Positive, Meta(description="What fits, if absent.")] | None = None
    max_completion_tokens: (
        Annotated[Positive, Meta(description="The newer name of max_tokens.")] | None
    ) = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, whole(0, 20)] | None = None
    store: Annotated[bool, Meta(description="Nothing is stored: true is refused.")] | None = None
    modalities: list[Literal["text"]] | None = None


class AnswerMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The answer."""

    role: Literal["assistant"]
    content: str


class ChatChoice(msgspec.Struct, frozen=True, kw_only=True):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"]


class ChatAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The answer that comes at once."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: CompletionUsage


class ChatDelta(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is new of an answer; the role comes first, alone."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True, kw_only=True):
    """What is new of one of `n` answers."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length"] | None


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """An event of an answer that comes in pieces."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: CompletionUsage | None = None
