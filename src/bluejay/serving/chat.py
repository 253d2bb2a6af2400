"""`POST /v1/chat/completions`: answer in a conversation."""

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from functools import partial

from starlette.responses import Response

from bluejay.generation.engine_requests import FinishReason
from bluejay.serving.answers import completion_usage, send_stream, send_whole
from bluejay.serving.chat_bodies import (
    REFUSED,
    AnswerMessage,
    ChatAnswer,
    ChatBody,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatDelta,
)
from bluejay.serving.conversations import AnswerOpening, conversation_prompt, require_unstored, said
from bluejay.serving.errors import ApiError
from bluejay.serving.logprobs import ChatLogprobs, chat_logprobs
from bluejay.serving.prompts import require_room
from bluejay.serving.routes import Call, Route
from bluejay.serving.samples import FinishedSample, SampleRun, TokenUsage
from bluejay.serving.sampling_fields import (
    alternative_count,
    require_stream,
    sample_count,
    sample_options,
    timeout_seconds,
    wants_usage,
)
from bluejay.serving.service import TextService
from bluejay.serving.sse import Event
from bluejay.text.chat_templates import ChatMessage
from bluejay.text.sample_writer import TextPiece
from bluejay.vocab.quoting import quoted


def chat_routes(service: TextService) -> list[Route]:
    """The route that answers in conversations."""
    return [
        Route(
            method="POST",
            path="/v1/chat/completions",
            summary="Answer in a conversation.",
            handler=partial(_chat, service),
            body=ChatBody,
            refused=REFUSED,
            answer=ChatAnswer,
            streams=True,
            is_queued=True,
        )
    ]


async def _chat(service: TextService, call: Call[ChatBody]) -> Response:
    body = call.body
    _check_fields(body)
    n = sample_count(service.limits.request, body.n)
    seconds = timeout_seconds(service.limits, body.timeout_ms)
    options = await sample_options(service, body, max_tokens=0, tenant=call.tenant)
    prompt, max_tokens = await conversation_prompt(
        service,
        _messages(body),
        max_tokens=_max_tokens(body),
        num_kept=_num_kept(body),
    )
    require_room(service, [prompt], n)
    options = replace(
        options,
        max_tokens=max_tokens,
        num_samples=n,
        num_alternatives=_num_alternatives(service, body),
        stops=(*options.stops, *service.chat_template.stops),
    )
    run = SampleRun(service, [prompt.ids], options, record=call.record)
    writer = _Writer(service, call)
    if body.stream:
        return send_stream(call, run, writer.events(run), seconds=seconds)
    return await send_whole(
        call, run, lambda samples: writer.whole(samples, run.usage), seconds=seconds
    )


class _Writer:
    """Writes the answer to one call."""

    def __init__(self, service: TextService, call: Call[ChatBody]) -> None:
        self._service, self._body = service, call.body
        self._id = f"chatcmpl-{call.id}"
        self._created = int(time.time())
        self._model = call.body.model or service.model

    def whole(self, samples: Sequence[FinishedSample], usage: TokenUsage) -> ChatAnswer:
        """The answer that comes at once."""
        return ChatAnswer(
            id=self._id,
            object="chat.completion",
            created=self._created,
            model=self._model,
            choices=[self._choice(sample) for sample in samples],
            usage=completion_usage(usage),
        )

    async def events(self, run: SampleRun) -> AsyncGenerator[Event, None]:
        """The events of an answer that comes in pieces: its role, its text, its end."""
        openings: dict[int, AnswerOpening] = {}
        async for delta in run.deltas():
            index = delta.sample_index
            if index not in openings:
                openings[index] = AnswerOpening(self._service.chat_template)
                yield self._event(index, ChatDelta(role="assistant", content=""))
            text = openings[index].take(delta.piece.text)
            logprobs = self._logprobs(delta.piece)
            if text or (logprobs is not None and logprobs.content):
                yield self._event(index, ChatDelta(content=text), logprobs=logprobs)
            if delta.finish_reason is not None:
                yield self._event(index, ChatDelta(), finish_reason=delta.finish_reason)
        if wants_usage(self._body):
            yield Event(data=self._chunk([], run.usage))

    def _event(
        self,
        index: int,
        delta: ChatDelta,
        *,
        logprobs: ChatLogprobs | None = None,
        finish_reason: FinishReason | None = None,
    ) -> Event:
        choice = ChatChunkChoice(
            index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason
        )
        return Event(data=self._chunk([choice]))

    def _chunk(self, choices: list[ChatChunkChoice], usage: TokenUsage | None = None) -> ChatChunk:
        return ChatChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._model,
            choices=choices,
            usage=None if usage is None else completion_usage(usage),
        )

    def _choice(self, sample: FinishedSample) -> ChatChoice:
        text = AnswerOpening(self._service.chat_template).take(sample.piece.text)
        return ChatChoice(
            index=sample.sample_index,
            message=AnswerMessage(role="assistant", content=text),
            logprobs=self._logprobs(sample.piece),
            finish_reason=sample.finish_reason,
        )

    def _logprobs(self, piece: TextPiece) -> ChatLogprobs | None:
        if not self._body.logprobs:
            return None
        return chat_logprobs(self._service.tokenizer, piece.tokens)


def _check_fields(body: ChatBody) -> None:
    """Refuse what is not offered and what excludes each other."""
    require_stream(body)
    require_unstored(body.store)


def _num_kept(body: ChatBody) -> int | None:
    """How many messages stay at the beginning of a conversation that is cut; None if it is not."""
    keep = body.context_keep
    if (body.context_policy == "keep") != (keep is not None):
        raise ApiError(
            400,
            "context_keep says how many messages context_policy 'keep' keeps at the beginning: send"
            " both or neither.",
            param="context_keep",
        )
    if keep is None:
        return 0 if body.context_policy == "trim" else None
    if not isinstance(keep, int) or not 0 <= keep <= len(body.messages):
        raise ApiError(
            400,
            f"context_keep is {quoted(keep)}, but of a conversation it is the number of messages"
            f" that stay at the beginning: from 0 to {len(body.messages)}.",
            param="context_keep",
        )
    return keep


def _max_tokens(body: ChatBody) -> int | None:
    both = (body.max_tokens, body.max_completion_tokens)
    if None not in both and both[0] != both[1]:
        raise ApiError(
            400,
            f"max_tokens is {quoted(both[0])} and max_completion_tokens {quoted(both[1])}, which"
            " mean the same: send one.",
            param="max_tokens",
        )
    return both[1] if both[0] is None else both[0]


def _num_alternatives(service: TextService, body: ChatBody) -> int:
    count = body.top_logprobs
    if count is None:
        return 0
    if not body.logprobs:
        raise ApiError(
            400, "top_logprobs is only of use with logprobs: set it.", param="top_logprobs"
        )
    return alternative_count(service.limits.request, count, param="top_logprobs")


def _messages(body: ChatBody) -> list[ChatMessage]:
    return [said(message.role, message.text) for message in body.messages]
