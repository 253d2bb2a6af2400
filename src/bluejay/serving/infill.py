"""`POST /infill`: the text at the cursor, in llama.cpp's shape, as llama.vim asks for it."""

import asyncio
import secrets
import time
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Final

import msgspec
from starlette.responses import Response

from bluejay.core.errors import BluejayError
from bluejay.generation.engine_requests import FinishReason
from bluejay.generation.sampling_params import SamplingParams
from bluejay.serving.chains import ChainMaker
from bluejay.serving.errors import ApiError
from bluejay.serving.grammars import compiled_grammar
from bluejay.serving.infill_bodies import (
    DEFAULT_N_PREDICT,
    REFUSED,
    InfillAnswer,
    InfillBody,
    InfillTimings,
    check_infill,
    infill_stages,
)
from bluejay.serving.infill_prompts import InfillPrompt, infill_prompt
from bluejay.serving.prompts import Prompt, require_room
from bluejay.serving.routes import Call, Route, json_answer
from bluejay.serving.samples import SampleOptions, SampleRun
from bluejay.serving.sampling_fields import stop_strings
from bluejay.serving.service import TextService
from bluejay.serving.sse import until_disconnect
from bluejay.text.grammar import json_schema_grammar, rules_grammar
from bluejay.text.stop_strings import StopMatcher

_SHORT: Final = 4096


def infill_routes(service: TextService) -> list[Route]:
    """The route that fills in."""
    return [
        Route(
            method="POST",
            path="/infill",
            summary="The text at a cursor.",
            handler=partial(_infill, service),
            body=InfillBody,
            refused=REFUSED,
            answer=dict[str, Any],
            is_queued=True,
        )
    ]


async def _infill(service: TextService, call: Call[InfillBody]) -> Response:
    body = call.body
    check_infill(body)
    adapter = service.adapter_of(body.model)
    asked_stops = stop_strings(service.limits.request, body.stop)
    prompt, num_new = await _prompt(service, body)
    if not prompt.ids:
        raise ApiError(
            400,
            "There is no text before the cursor, and this model has no token that begins one: give"
            " input_prefix.",
            param="input_prefix",
        )
    require_room(service, [Prompt(ids=prompt.ids)], 1)
    options = SampleOptions(
        max_tokens=num_new,
        stop_ids=frozenset() if body.ignore_eos else prompt.stop_ids,
        tenant=call.tenant,
        adapter=adapter,
    )
    options = await _sampled(service, body, options, prompt)
    run = SampleRun(service, [prompt.ids], options, record=call.record).start()
    writing = _Writing(body=body, prompt=prompt, stops=(*asked_stops, *prompt.stops))
    try:
        await until_disconnect(call, writing.follow(run))
    finally:
        run.cancel()
    answer = writing.answer(run, model=body.model or service.model)
    return json_answer(_chosen(answer, body.response_fields))


async def _prompt(service: TextService, body: InfillBody) -> tuple[InfillPrompt, int]:
    """The prompt, and how many ids may follow it."""
    wanted = DEFAULT_N_PREDICT if body.n_predict is None else body.n_predict
    reserved = service.context_length // 4 if wanted == -1 else wanted
    work = partial(infill_prompt, service, body, num_new=reserved)
    texts = [body.input_prefix, body.input_suffix, *(item.text for item in body.input_extra or ())]
    is_short = sum(map(len, texts)) < _SHORT
    prompt = work() if is_short else await asyncio.to_thread(work)
    return prompt, service.context_length - len(prompt.ids) if wanted == -1 else wanted


async def _sampled(
    service: TextService, body: InfillBody, options: SampleOptions, prompt: InfillPrompt
) -> SampleOptions:
    """The options with how ids are chosen."""
    grammar = None
    try:
        if body.grammar:
            rules = rules_grammar(body.grammar)
            grammar = await compiled_grammar(service, rules, param="grammar")
        elif body.json_schema is not None:
            schema = json_schema_grammar(body.json_schema)
            grammar = await compiled_grammar(service, schema, param="json_schema")
    except BluejayError as error:
        raise ApiError(400, str(error), param="json_schema") from None
    seed = secrets.randbits(31) if body.seed in (None, -1) else body.seed
    assert seed is not None
    stages = infill_stages(body, service.tokenizer, stop_ids=prompt.stop_ids, seed=seed)
    banned = prompt.stop_ids if body.ignore_eos else ()
    start = None if grammar is None else grammar.start
    chain = ChainMaker(service, stages, constraint=start, banned=banned)
    return replace(options, chain=chain, sampling=SamplingParams(seed=seed))


@dataclass(kw_only=True)
class _Writing:
    """The text while it comes, and what ends it."""

    body: InfillBody
    prompt: InfillPrompt
    stops: tuple[str, ...]
    content: str = ""
    stop_type: str = "none"
    stopping_word: str = ""
    began: float = field(default_factory=time.monotonic)
    first: float | None = None
    ended: float = 0.0

    async def follow(self, run: SampleRun) -> None:
        """Take the text up to its end."""
        matcher = StopMatcher(self.stops)
        async with aclosing(run.deltas()) as deltas:
            while self.stop_type == "none":
                try:
                    async with asyncio.timeout(self._patience()):
                        delta = await anext(deltas)
                except (TimeoutError, StopAsyncIteration):
                    self.stop_type = "limit"
                    break
                if self.first is None:
                    self.first = time.monotonic()
                self._take(matcher, delta.piece.text, delta.finish_reason)
        self.ended = time.monotonic()

    def _patience(self) -> float | None:
        """Seconds that are left for the prompt; a request without new tokens only reads it."""
        limit = self.body.t_max_prompt_ms
        if self.first is not None or not limit or self.body.n_predict == 0:
            return None
        return max(0.0, self.began + limit / 1000 - time.monotonic())

    def _take(self, matcher: StopMatcher, text: str, reason: FinishReason | None) -> None:
        self.content += matcher.feed(text)
        if matcher.found is not None:
            self.stop_type, self.stopping_word = "word", matcher.found
        elif reason is not None:
            self.content += matcher.flush()
            self.stop_type = "eos" if reason == "stop" else "limit"
            # What stands behind the cursor is there already.
            self.content = self.content.removesuffix(self.prompt.rest)
        elif self._is_late():
            self.content += matcher.flush()
            self.stop_type = "limit"
        end = _dedented(self.content, self.body.n_indent or 0)
        if end is not None:
            self.content, self.stop_type, self.stopping_word = self.content[:end], "limit", ""

    def _is_late(self) -> bool:
        limit = self.body.t_max_predict_ms
        if not limit or self.first is None or "\n" not in self.content:
            return False
        return time.monotonic() - self.first > limit / 1000

    def answer(self, run: SampleRun, *, model: str) -> InfillAnswer:
        """All of it."""
        usage = run.usage
        return InfillAnswer(
            index=0,
            content=self.content,
            model=model,
            stop=True,
            stop_type=self.stop_type,
            stopping_word=self.stopping_word,
            has_new_line="\n" in self.content,
            truncated=self.prompt.is_cut,
            tokens_predicted=usage.completion_tokens,
            tokens_evaluated=usage.prompt_tokens,
            tokens_cached=usage.prompt_tokens + usage.completion_tokens,
            timings=self._timings(
                usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens
            ),
        )

    def _timings(self, prompt: int, cached: int, new: int) -> InfillTimings:
        first = self.ended if self.first is None else self.first
        prompt_ms, new_ms = 1000 * (first - self.began), 1000 * (self.ended - first)
        read = prompt - cached
        return InfillTimings(
            cache_n=cached,
            prompt_n=read,
            prompt_ms=prompt_ms,
            prompt_per_token_ms=prompt_ms / read if read else 0.0,
            prompt_per_second=1000 * read / prompt_ms if prompt_ms else 0.0,
            predicted_n=new,
            predicted_ms=new_ms,
            predicted_per_token_ms=new_ms / new if new else 0.0,
            predicted_per_second=1000 * new / new_ms if new_ms else 0.0,
        )


def _dedented(text: str, least: int) -> int | None:
    """Where the first new line begins that has less white space before its text than `least`."""
    begin = text.find("\n") if least else -1
    while begin >= 0:
        end = text.find("\n", begin + 1)
        line = text[begin + 1 : end if end >= 0 else len(text)]
        if line.strip() and len(line) - len(line.lstrip(" \t")) < least:
            return begin
        begin = end
    return None


def _chosen(answer: InfillAnswer, fields: list[str] | None) -> dict[str, Any]:
    """The fields that were asked for; those that there are not are left out."""
    whole: dict[str, Any] = msgspec.to_builtins(answer)
    if fields is None:
        return whole
    found = {}
    for name in fields:
        value: Any = whole
        for step in name.split("/"):
            value = value.get(step) if isinstance(value, dict) else None
        if value is not None:
            found[name] = value
    return found
