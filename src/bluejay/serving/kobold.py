"""The Kobold API, as KoboldAI Lite and SillyTavern speak it: `/api/v1` and `/api/extra`."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Final

import msgspec
from starlette.responses import Response

from bluejay.core.errors import BluejayError
from bluejay.serving.errors import ApiError, ClientGoneError, api_error
from bluejay.serving.kobold_bodies import (
    DEFAULT_MAX_LENGTH,
    REFUSED,
    AbortResult,
    GenerateAnswer,
    GenerateBody,
    GenerateResult,
    KeyBody,
    KoboldLogprobs,
    LogprobsResult,
    NumberResult,
    StreamedToken,
    TextResult,
    TokenCountBody,
    TokenCountResult,
)
from bluejay.serving.kobold_generations import Generation, Generations, Owner
from bluejay.serving.kobold_requests import read_generate
from bluejay.serving.logprobs import chat_logprobs
from bluejay.serving.routes import Call, Handler, Route, json_answer
from bluejay.serving.samples import SampleRun
from bluejay.serving.service import TextService
from bluejay.serving.sse import Event, event_stream, until_disconnect

UNITED_VERSION: Final = "1.2.5"
CPP_VERSION: Final = "1.80"
"""Of the interface that is spoken: clients send what a KoboldCpp of this version knows."""


def kobold_routes(service: TextService) -> list[Route]:
    """All routes of the Kobold API."""
    api = _Kobold(service)
    routes = []
    for version in ("v1", "latest"):
        routes += [
            _post(f"/api/{version}/generate", "Continue a text.", api.generate, GenerateBody),
            _get(f"/api/{version}/model", "The model's name.", api.model, TextResult),
            _get(f"/api/{version}/info/version", "KoboldAI's version.", api.version, TextResult),
            _get(
                f"/api/{version}/config/max_context_length",
                "The context's length in tokens.",
                api.context_length,
                NumberResult,
            ),
            _get(
                f"/api/{version}/config/max_length",
                "How many tokens are new if a request does not say so.",
                api.max_length,
                NumberResult,
            ),
        ]
    return [*routes, *_extra_routes(api)]


def _extra_routes(api: "_Kobold") -> list[Route]:
    stream = "/api/extra/generate/stream"
    check = "/api/extra/generate/check"
    return [
        _post(stream, "Continue a text, in events.", api.stream, GenerateBody, answer=None),
        _post(check, "What has been written so far.", api.check, KeyBody),
        _get(check, "What has been written so far.", api.check, GenerateAnswer),
        _post("/api/extra/abort", "End a generation.", api.abort, KeyBody, AbortResult),
        _post(
            "/api/extra/last_logprobs",
            "Log probabilities of a text.",
            api.last_logprobs,
            KeyBody,
            LogprobsResult,
        ),
        _post(
            "/api/extra/tokencount",
            "A text as ids.",
            api.count,
            TokenCountBody,
            TokenCountResult,
        ),
        _get("/api/extra/version", "What is spoken here.", api.extra_version, dict[str, Any]),
        _get(
            "/api/extra/true_max_context_length",
            "The context's length in tokens.",
            api.context_length,
            NumberResult,
        ),
        _get("/api/extra/perf", "Times of the last text.", api.performance, dict[str, Any]),
    ]


def _post(
    path: str,
    summary: str,
    handler: Handler,
    body: type[msgspec.Struct],
    answer: Any = GenerateAnswer,
) -> Route:
    return Route(
        method="POST",
        path=path,
        summary=summary,
        handler=_with_detail(handler),
        body=body,
        is_body_optional=body is KeyBody,
        refused=REFUSED if body is GenerateBody else {},
        answer=answer,
        streams=answer is None,
        needs_engine=body is GenerateBody,
    )


def _get(path: str, summary: str, handler: Handler, answer: Any) -> Route:
    return Route(
        method="GET",
        path=path,
        summary=summary,
        handler=handler,
        answer=answer,
        needs_engine=False,
    )


def _with_detail(handler: Handler) -> Handler:
    """A handler whose refusals also have Kobold's `detail`, which its clients show."""

    async def handle(call: Call[Any]) -> Response:
        try:
            return await handler(call)
        except ClientGoneError:
            raise
        except (ApiError, BluejayError) as error:
            told = api_error(error)
            is_busy = told.status in (429, 503)
            kind = "service_unavailable" if is_busy else (told.code or "invalid_request")
            detail = {"msg": told.message, "type": kind}
            return Response(
                msgspec.json.encode(told.envelope() | {"detail": detail}),
                status_code=told.status,
                headers=told.headers,
                media_type="application/json",
            )

    return handle


class _Kobold:
    """The handlers, and the generations that they share."""

    def __init__(self, service: TextService) -> None:
        self._service = service
        self._generations = Generations()
        self._began = time.monotonic()

    async def generate(self, call: Call[GenerateBody]) -> Response:
        """The whole text at once."""
        run, generation, kept_stops = await self._begin(call)

        async def whole() -> None:
            async for _ in generation.follow(run, kept_stops):
                pass

        try:
            await until_disconnect(call, whole())
        finally:
            run.cancel()
            self._generations.close(generation)
        return json_answer(self._answer(generation, run))

    async def stream(self, call: Call[GenerateBody]) -> Response:
        """The text in events."""
        if (call.body.n or 1) != 1:
            raise ApiError(400, "A stream has one text: leave out n.", param="n")
        run, generation, kept_stops = await self._begin(call)

        async def events() -> AsyncGenerator[Event, None]:
            async with aclosing(generation.follow(run, kept_stops)) as news:
                async for _, text, reason in news:
                    token = StreamedToken(token=text, finish_reason=reason)
                    yield Event(name="message", data=token)
            if generation.reasons[0] is None:
                yield Event(name="message", data=StreamedToken(token="", finish_reason="stop"))

        def end() -> None:
            run.cancel()
            self._generations.close(generation)

        return event_stream(call, events(), closing=b"", error_name="error", on_end=end)

    async def check(self, call: Call[KeyBody | None]) -> Response:
        """What has been written so far; nothing of what others write."""
        generation = self._find(call)
        text = "" if generation is None else generation.texts[0]
        return json_answer(GenerateAnswer(results=[GenerateResult(text=text)]))

    async def abort(self, call: Call[KeyBody]) -> Response:
        """End a generation, which answers with what it has."""
        generation = self._find(call)
        success = generation is not None and generation.is_running
        if generation is not None:
            generation.aborted.set()
        return json_answer(AbortResult(success=success))

    async def last_logprobs(self, call: Call[KeyBody]) -> Response:
        """Of the owner's last text, or of that of a key."""
        generation = self._find(call) or self._generations.last(_owner(call))
        if generation is None or not generation.wants_logprobs:
            return json_answer(LogprobsResult(logprobs=None))
        return json_answer(LogprobsResult(logprobs=self._logprobs(generation)))

    async def count(self, call: Call[TokenCountBody]) -> Response:
        """Ids as a prompt has them."""
        encode = self._service.text_ids if call.body.special is False else self._counted
        ids = encode(call.body.prompt)
        return json_answer(TokenCountResult(value=len(ids), ids=ids))

    async def model(self, call: Call[None]) -> Response:
        """The name under which it is served."""
        return json_answer(TextResult(result=self._service.model))

    async def version(self, call: Call[None]) -> Response:
        """Of KoboldAI United's API."""
        return json_answer(TextResult(result=UNITED_VERSION))

    async def extra_version(self, call: Call[None]) -> Response:
        """What there is and what there is not."""
        features = {
            **dict.fromkeys(("txt2img", "vision", "transcribe", "multiplayer"), False),
            **dict.fromkeys(("websearch", "tts", "embeddings", "savedata"), False),
        }
        protected = bool(call.tenant)
        return json_answer(
            {"result": "KoboldCpp", "version": CPP_VERSION, "protected": protected, **features}
        )

    async def context_length(self, call: Call[None]) -> Response:
        """Prompt and new tokens together."""
        return json_answer(NumberResult(value=self._service.context_length))

    async def max_length(self, call: Call[None]) -> Response:
        """The default."""
        return json_answer(NumberResult(value=DEFAULT_MAX_LENGTH))

    async def performance(self, call: Call[None]) -> Response:
        """Times in seconds: of the owner's last text, which the others' are no part of."""
        status = self._service.engine.status()
        now = time.monotonic()
        last = self._generations.last(_owner(call))
        ended = now if last is None or last.ended is None else last.ended
        began = ended if last is None else last.began
        first = ended if last is None or last.first_text is None else last.first_text
        return json_answer(
            {
                "last_process": first - began,
                "last_eval": ended - first,
                "last_token_count": 0 if last is None else last.num_tokens,
                "last_seed": -1 if last is None else last.seed,
                "stop_reason": _stop_reason(last),
                "total_gens": self._generations.num_begun,
                "queue": status.queued_requests,
                "idle": int(status.slots_in_use == 0),
                "uptime": now - self._began,
                "idletime": 0 if last is None else now - ended,
                "quiet": True,
            }
        )

    def _find(self, call: Call[Any]) -> Generation | None:
        key = None if call.body is None else call.body.genkey
        return self._generations.find(_owner(call), key)

    def _counted(self, text: str) -> list[int]:
        return (
            self._service.prompt_ids(text)
            if text
            else list(self._service.conventions.document_start)
        )

    async def _begin(
        self, call: Call[GenerateBody]
    ) -> tuple[SampleRun, Generation, tuple[str, ...]]:
        """Check a request and put it into the queue; the stops that stay in the text."""
        asked = await read_generate(self._service, call.body, tenant=call.tenant)
        ids, options = asked.prompt.ids, asked.options
        run = SampleRun(self._service, [ids], options, record=call.record).start()
        generation = Generation(
            num_samples=options.num_samples,
            seed=asked.seed,
            wants_logprobs=bool(call.body.logprobs),
        )
        self._generations.open(_owner(call), call.body.genkey or call.id, generation)
        return run, generation, asked.kept_stops

    def _answer(self, generation: Generation, run: SampleRun) -> GenerateAnswer:
        usage = run.usage
        return GenerateAnswer(
            results=[
                GenerateResult(
                    text=text,
                    finish_reason=reason or "stop",
                    logprobs=self._logprobs(generation)
                    if generation.wants_logprobs and number == 0
                    else None,
                    prompt_tokens=usage.prompt_tokens,
                    completion_tokens=usage.completion_tokens,
                )
                for number, (text, reason) in enumerate(
                    zip(generation.texts, generation.reasons, strict=True)
                )
            ]
        )

    def _logprobs(self, generation: Generation) -> KoboldLogprobs:
        found = chat_logprobs(self._service.tokenizer, generation.tokens)
        return KoboldLogprobs(content=found.content)


def _owner(call: Call[Any]) -> Owner:
    client = call.request.client
    return call.tenant, client.host if client else ""


def _stop_reason(generation: Generation | None) -> int:
    """KoboldCpp's number: out of tokens, an end, or none."""
    reason = None if generation is None else generation.reasons[0]
    return -1 if reason is None else int(reason == "stop")
