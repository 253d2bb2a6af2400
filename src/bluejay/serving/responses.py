"""`POST /v1/responses`: answer in a conversation, in OpenAI's newer shape."""

import time
from collections.abc import AsyncGenerator
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any, Literal

import msgspec
from starlette.responses import Response

from bluejay.generation.engine_requests import FinishReason
from bluejay.serving.answers import send_stream, send_whole
from bluejay.serving.conversations import AnswerOpening, conversation_prompt, require_unstored, said
from bluejay.serving.errors import ApiError
from bluejay.serving.logprobs import ChatTokenLogprob, chat_logprobs
from bluejay.serving.prompts import require_room
from bluejay.serving.response_bodies import (
    REFUSED,
    AnswerItem,
    AnswerText,
    IncompleteDetails,
    InputTokensDetails,
    OutputTokensDetails,
    ResponseAnswer,
    ResponseBody,
    ResponseUsage,
    TextConfig,
)
from bluejay.serving.routes import Call, Route
from bluejay.serving.samples import FinishedSample, SampleRun, TokenUsage
from bluejay.serving.sampling_fields import (
    SamplingFields,
    TextFormat,
    alternative_count,
    sample_options,
    timeout_seconds,
)
from bluejay.serving.service import TextService
from bluejay.serving.sse import Event
from bluejay.text.chat_templates import ChatMessage
from bluejay.text.sample_writer import TextPiece

Status = Literal["in_progress", "completed", "incomplete"]


def response_routes(service: TextService) -> list[Route]:
    """The route that answers in OpenAI's newer shape."""
    return [
        Route(
            method="POST",
            path="/v1/responses",
            summary="Answer in a conversation, in OpenAI's newer shape.",
            handler=partial(_respond, service),
            body=ResponseBody,
            refused=REFUSED,
            answer=ResponseAnswer,
            streams=True,
            is_queued=True,
        )
    ]


async def _respond(service: TextService, call: Call[ResponseBody]) -> Response:
    body = call.body
    require_unstored(body.store)
    seconds = timeout_seconds(service.limits, body.timeout_ms)
    options = await sample_options(service, _fields(body), max_tokens=0, tenant=call.tenant)
    prompt, max_tokens = await conversation_prompt(
        service,
        _messages(body),
        max_tokens=body.max_output_tokens,
        num_kept=0 if body.truncation == "auto" else None,
        param="input",
        limit_param="max_output_tokens",
    )
    require_room(service, [prompt], 1)
    options = replace(
        options,
        max_tokens=max_tokens,
        num_alternatives=_num_alternatives(service, body),
        stops=service.chat_template.stops,
    )
    run = SampleRun(service, [prompt.ids], options, record=call.record)
    writer = _Writer(service, call)
    if body.stream:
        events = writer.events(run)
        return send_stream(call, run, events, seconds=seconds, closing=b"", error_name="error")
    return await send_whole(
        call,
        run,
        lambda samples: writer.whole(samples[0], run.usage),
        seconds=seconds,
    )


class _Writer:
    """Writes the answer to one call."""

    def __init__(self, service: TextService, call: Call[ResponseBody]) -> None:
        self._service, self._body, self._id = service, call.body, call.id
        self._created = int(time.time())
        self._opening = AnswerOpening(service.chat_template)
        self._numbers = count()

    def whole(self, sample: FinishedSample, usage: TokenUsage) -> ResponseAnswer:
        """The answer that comes at once."""
        text = self._opening.take(sample.piece.text)
        status: Status = "completed" if sample.finish_reason == "stop" else "incomplete"
        item = self._item(status, [AnswerText(text=text, logprobs=self._logprobs(sample.piece))])
        return self._answer(status, [item], usage)

    async def events(self, run: SampleRun) -> AsyncGenerator[Event, None]:
        """The events of an answer that comes in pieces, in the order that clients count on."""
        begun = self._answer("in_progress", [])
        yield self._event("response.created", response=begun)
        yield self._event("response.in_progress", response=begun)
        yield self._event(
            "response.output_item.added", output_index=0, item=self._item("in_progress", [])
        )
        yield self._part_event("response.content_part.added", part=AnswerText(text=""))
        pieces: list[str] = []
        logprobs: list[ChatTokenLogprob] = []
        reason: FinishReason | None = None
        async for delta in run.deltas():
            piece, new = self._opening.take(delta.piece.text), self._logprobs(delta.piece)
            reason = delta.finish_reason
            if piece or new:
                pieces.append(piece)
                logprobs += new
                yield self._part_event("response.output_text.delta", delta=piece, logprobs=new)
        text = "".join(pieces)
        yield self._part_event("response.output_text.done", text=text, logprobs=logprobs)
        part = AnswerText(text=text, logprobs=logprobs)
        yield self._part_event("response.content_part.done", part=part)
        status: Status = "completed" if reason == "stop" else "incomplete"
        item = self._item(status, [part])
        yield self._event("response.output_item.done", output_index=0, item=item)
        answer = self._answer(status, [item], run.usage)
        yield self._event(f"response.{status}", response=answer)

    def _logprobs(self, piece: TextPiece) -> list[ChatTokenLogprob]:
        if not self._body.include:
            return []
        return chat_logprobs(self._service.tokenizer, piece.tokens).content

    def _event(self, name: str, **fields: Any) -> Event:
        data = {"type": name, "sequence_number": next(self._numbers), **fields}
        return Event(data=data, name=name)

    def _part_event(self, name: str, **fields: Any) -> Event:
        """An event about the one text of the one item."""
        place = {"item_id": self._item_id, "output_index": 0, "content_index": 0}
        return self._event(name, **place, **fields)

    @property
    def _item_id(self) -> str:
        return f"msg_{self._id}"

    def _item(self, status: Status, content: list[AnswerText]) -> AnswerItem:
        return AnswerItem(id=self._item_id, status=status, content=content)

    def _answer(
        self, status: Status, output: list[AnswerItem], usage: TokenUsage | None = None
    ) -> ResponseAnswer:
        body = self._body
        text_format = (body.text and body.text.format) or TextFormat()
        return ResponseAnswer(
            id=f"resp_{self._id}",
            created_at=self._created,
            status=status,
            model=body.model or self._service.model,
            output=output,
            instructions=body.instructions,
            max_output_tokens=body.max_output_tokens,
            temperature=1.0 if body.temperature is None else body.temperature,
            top_p=1.0 if body.top_p is None else body.top_p,
            text={"format": msgspec.to_builtins(text_format)},
            truncation=body.truncation or "disabled",
            top_logprobs=body.top_logprobs or 0,
            incomplete_details=IncompleteDetails() if status == "incomplete" else None,
            usage=None if usage is None else _usage(usage),
        )


def _num_alternatives(service: TextService, body: ResponseBody) -> int:
    count = body.top_logprobs
    if count is None:
        return 0
    if not body.include:
        raise ApiError(
            400,
            "top_logprobs is only of use with include: ['message.output_text.logprobs'].",
            param="top_logprobs",
        )
    return alternative_count(service.limits.request, count, param="top_logprobs")


def _fields(body: ResponseBody) -> SamplingFields:
    return SamplingFields(
        model=body.model,
        temperature=body.temperature,
        top_p=body.top_p,
        seed=body.seed,
        response_format=(body.text or TextConfig()).response_format(),
        adapter=body.adapter,
    )


def _messages(body: ResponseBody) -> list[ChatMessage]:
    found = []
    if body.instructions is not None:
        found.append(said("system", body.instructions))
    if isinstance(body.input, str):
        return [*found, said("user", body.input)]
    return [*found, *(said(message.role, message.text) for message in body.input)]


def _usage(usage: TokenUsage) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=usage.cached_tokens),
        output_tokens=usage.completion_tokens,
        output_tokens_details=OutputTokensDetails(),
        total_tokens=usage.prompt_tokens + usage.completion_tokens,
    )
