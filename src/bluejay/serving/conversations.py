"""Conversations to prompts that fit into the context: whole messages go, never half ones."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Literal

from bluejay.core.errors import BluejayError
from bluejay.serving.errors import ApiError
from bluejay.serving.prompts import Prompt
from bluejay.serving.service import TextService
from bluejay.text.chat_templates import ChatMessage, ChatTemplate, chat_prompt
from bluejay.vocab.quoting import quoted

ClientRole = Literal["system", "developer", "user", "assistant"]
# For an answer of unknown length, when a conversation must be cut.
_LEAST_ROOM = 256


class AnswerOpening:
    """Takes away the white space that a template puts before an answer."""

    def __init__(self, template: ChatTemplate) -> None:
        self._is_before = template.trims_answer

    def take(self, text: str) -> str:
        """The next piece of the answer without what is none of it."""
        if self._is_before:
            text = text.lstrip()
            self._is_before = not text
        return text


def require_unstored(store: bool | None) -> None:
    """Refuse what asks that the conversation be kept."""
    if store:
        raise ApiError(
            400,
            "store is true, but nothing is stored here: leave it out.",
            param="store",
            code="unsupported_field",
        )


def said(role: ClientRole, content: str) -> ChatMessage:
    """A message by a client's word for who says it: `developer` is another one for `system`."""
    return ChatMessage(role="system" if role == "developer" else role, content=content)


async def conversation_prompt(
    service: TextService,
    messages: Sequence[ChatMessage],
    *,
    max_tokens: int | None,
    num_kept: int | None = None,
    param: str = "messages",
    limit_param: str = "max_tokens",
) -> tuple[Prompt, int]:
    """The prompt of a conversation and how many tokens its answer may have.

    Without `max_tokens` that is what the context has left. With `num_kept` the oldest messages
    are left out until the rest fits, but for the first `num_kept` ones, a system message at the
    beginning and the last message.
    """
    num_characters = sum(len(message.content) for message in messages)
    service.limits.request.check("prompt_characters", num_characters, param=param)
    if max_tokens is not None and max_tokens < 1:
        raise ApiError(
            400,
            f"{limit_param} is {quoted(max_tokens)}, but it must be at least 1.",
            param=limit_param,
        )
    return await asyncio.to_thread(
        partial(
            _fitted,
            service,
            messages,
            max_tokens=max_tokens,
            num_kept=num_kept,
            param=param,
        )
    )


def _fitted(
    service: TextService,
    messages: Sequence[ChatMessage],
    *,
    max_tokens: int | None,
    num_kept: int | None,
    param: str,
) -> tuple[Prompt, int]:
    context, trims = service.context_length, num_kept is not None
    least = max_tokens or (min(_LEAST_ROOM, context // 4) if trims else 1)
    num_first = max(num_kept or 0, 1 if messages[0].role == "system" else 0)
    # The fewest messages left out that make the rest fit: the last one always stays.
    low, high = 0, max(0, len(messages) - num_first - 1) if trims else 0
    while low < high:
        middle = (low + high) // 2
        fits = len(_read(service, messages, num_first, middle, param).ids) + least <= context
        low, high = (low, middle) if fits else (middle + 1, high)
    prompt = _read(service, messages, num_first, low, param)
    room = context - len(prompt.ids)
    if room < least:
        raise ApiError(
            400,
            f"The conversation has {len(prompt.ids):,} tokens and its answer {least:,}, but the"
            f" context holds {context:,}: leave out the oldest messages or ask for fewer tokens.",
            param=param,
            code="context_length_exceeded",
        )
    return prompt, room if max_tokens is None else max_tokens


def _read(
    service: TextService,
    messages: Sequence[ChatMessage],
    num_first: int,
    num_left_out: int,
    param: str,
) -> Prompt:
    kept = [*messages[:num_first], *messages[num_first + num_left_out :]]
    try:
        prompt = chat_prompt(service.tokenizer, service.chat_template, kept)
    except BluejayError as error:
        raise ApiError(400, str(error), param=param) from None
    return Prompt(ids=prompt.ids, num_kept=prompt.num_kept)
