"""`POST /v1/completions`: continue texts, or score them."""

import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from functools import partial

from starlette.responses import Response

from bluejay.generation.engine_requests import FinishReason
from bluejay.serving.answers import best_samples, completion_usage, send_stream, send_whole
from bluejay.serving.completion_bodies import (
    DEFAULT_MAX_TOKENS,
    REFUSED,
    CompletionAnswer,
    CompletionBody,
    CompletionChoice,
)
from bluejay.serving.errors import ApiError
from bluejay.serving.logprobs import completion_logprobs
from bluejay.serving.prompts import Prompt, fit_prompt, read_prompts, require_room
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
from bluejay.text.sample_writer import TextPiece
from bluejay.vocab.quoting import quoted


def completion_routes(service: TextService) -> list[Route]:
    """The route that continues texts."""
    return [
        Route(
            method="POST",
            path="/v1/completions",
            summary="Continue texts, or score them.",
            handler=partial(_complete, service),
            body=CompletionBody,
            refused=REFUSED,
            answer=CompletionAnswer,
            streams=True,
            is_queued=True,
        )
    ]


async def _complete(service: TextService, call: Call[CompletionBody]) -> Response:
    body = call.body
    _check_combinations(service, body)
    n = sample_count(service.limits.request, body.n)
    best_of = _best_of(service, body, n)
    seconds = timeout_seconds(service.limits, body.timeout_ms)
    options = await sample_options(service, body, max_tokens=_max_tokens(body), tenant=call.tenant)
    prompts = await _prompts(service, body, options.max_tokens)
    require_room(service, prompts, best_of)
    options = replace(
        options,
        num_samples=best_of,
        num_alternatives=_num_alternatives(service, body),
        scores_prompt=bool(body.echo),
        num_hidden=tuple(prompt.num_hidden for prompt in prompts),
        # Who scores a text counts on a number for each token that was made, as OpenAI's API has it:
        # lm-evaluation-harness drops the last one, whatever it is.
        shows_end=bool(body.echo),
    )
    run = SampleRun(service, [prompt.ids for prompt in prompts], options, record=call.record)
    writer = _Writer(service, call, num_choices=n)
    if body.stream:
        return send_stream(call, run, writer.events(run), seconds=seconds)
    return await send_whole(
        call, run, lambda samples: writer.whole(samples, run.usage), seconds=seconds
    )


class _Writer:
    """Writes the answer to one call."""

    def __init__(
        self, service: TextService, call: Call[CompletionBody], *, num_choices: int
    ) -> None:
        self._service, self._body = service, call.body
        self._num_choices = num_choices
        self._id = f"cmpl-{call.id}"
        self._created = int(time.time())

    def whole(self, samples: Sequence[FinishedSample], usage: TokenUsage) -> CompletionAnswer:
        """The answer that comes at once."""
        best = best_samples(samples, self._num_choices)
        choices = [
            self._choice(index, sample.piece, sample.finish_reason)
            for index, sample in enumerate(best)
        ]
        return self._answer(choices, usage)

    async def events(self, run: SampleRun) -> AsyncGenerator[Event, None]:
        """The events of an answer that comes in pieces."""
        async for delta in run.deltas():
            index = delta.prompt_index * self._num_choices + delta.sample_index
            choice = self._choice(index, delta.piece, delta.finish_reason)
            yield Event(data=self._answer([choice]))
        if wants_usage(self._body):
            yield Event(data=self._answer([], run.usage))

    def _choice(
        self, index: int, piece: TextPiece, finish_reason: FinishReason | None
    ) -> CompletionChoice:
        has_logprobs = self._body.logprobs is not None
        return CompletionChoice(
            index=index,
            text=piece.text,
            logprobs=completion_logprobs(self._service.tokenizer, piece.tokens)
            if has_logprobs
            else None,
            finish_reason=finish_reason,
        )

    def _answer(
        self, choices: list[CompletionChoice], usage: TokenUsage | None = None
    ) -> CompletionAnswer:
        return CompletionAnswer(
            id=self._id,
            object="text_completion",
            created=self._created,
            model=self._body.model or self._service.model,
            choices=choices,
            usage=None if usage is None else completion_usage(usage),
        )


def _check_combinations(service: TextService, body: CompletionBody) -> None:
    """Refuse fields that exclude each other."""
    require_stream(body)
    if not body.suffix:
        return
    if body.echo:
        raise ApiError(400, "echo and suffix cannot be combined: send one.", param="echo")
    if service.fill_marks is None:
        raise ApiError(
            400,
            "suffix is not supported by this model, which was not trained to fill in the middle:"
            " leave it out.",
            param="suffix",
            code="unsupported_field",
        )
    if body.context_policy not in (None, "refuse"):
        raise ApiError(
            400,
            "A text with a suffix is not cut: leave out context_policy, and send less around the"
            " gap.",
            param="context_policy",
        )


def _best_of(service: TextService, body: CompletionBody, n: int) -> int:
    """How many samples are made for each prompt."""
    if body.best_of is None:
        return n
    best_of = sample_count(service.limits.request, body.best_of, param="best_of")
    if best_of < n:
        raise ApiError(
            400,
            f"best_of is {best_of} and n {n}, but n of best_of samples are chosen: raise best_of.",
            param="best_of",
        )
    if best_of > n and body.stream:
        raise ApiError(
            400,
            "best_of chooses among finished samples, which cannot be streamed: leave out stream,"
            " or best_of.",
            param="best_of",
        )
    if best_of > n and body.logprobs is not None:
        raise ApiError(
            400,
            f"best_of and logprobs cannot be combined: ask for n={best_of} samples with logprobs"
            " and choose among them.",
            param="logprobs",
        )
    return best_of


def _max_tokens(body: CompletionBody) -> int:
    max_tokens = DEFAULT_MAX_TOKENS if body.max_tokens is None else body.max_tokens
    if max_tokens < 0 or (max_tokens == 0 and not body.echo):
        raise ApiError(
            400,
            f"max_tokens is {quoted(max_tokens)}, but it must be at least 1; with echo it may be 0,"
            " to score the prompt only.",
            param="max_tokens",
        )
    return max_tokens


def _num_alternatives(service: TextService, body: CompletionBody) -> int:
    return alternative_count(service.limits.request, body.logprobs or 0, param="logprobs")


async def _prompts(service: TextService, body: CompletionBody, max_tokens: int) -> list[Prompt]:
    prompts = await read_prompts(service, body.prompt)
    if body.suffix:
        prompts = [_with_suffix(service, prompt, body.suffix) for prompt in prompts]
    return [
        fit_prompt(
            service,
            prompt,
            max_tokens=max_tokens,
            policy=body.context_policy,
            keep=body.context_keep,
        )
        for prompt in prompts
    ]


def _with_suffix(service: TextService, prompt: Prompt, suffix: str) -> Prompt:
    """A prompt as what precedes a gap. Marks begin it, not the document start."""
    assert service.fill_marks is not None
    after = service.text_ids(suffix, param="suffix")
    before = prompt.ids[prompt.num_hidden :]
    return Prompt(ids=tuple(service.fill_marks.prompt(before, after)))
