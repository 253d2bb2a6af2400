"""From prompts' ids to the text of n samples each: engine requests, their events, and their end."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from bluejay.generation.engine_requests import (
    Constraint,
    EngineEvent,
    EngineRequest,
    Failed,
    Finished,
    FinishReason,
    NewTokens,
    PromptProgress,
    PromptScores,
)
from bluejay.generation.sampler_chain import SamplerChain
from bluejay.generation.sampling_params import SamplingParams
from bluejay.serving.errors import engine_failure
from bluejay.serving.record import RequestRecord
from bluejay.serving.sample_state import SampleNews, SampleState
from bluejay.serving.service import TextService
from bluejay.text.sample_writer import SampleWriter, TextPiece


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """What is asked of all samples of a call.

    `scores_prompt` puts the prompt's tokens, scored, in front of every sample, without the first
    `num_hidden` of each prompt (none are hidden if it is empty). `shows_end` puts the stop id that
    ended a sample behind its tokens. `stop_ids` of None are the model's own. `constraint` makes a
    new one for each sample. So does `chain`, of a prompt and a sample's number; it takes the place
    of `constraint` and of all of `sampling` but the seed.
    """

    max_tokens: int
    sampling: SamplingParams = field(default_factory=SamplingParams)
    num_samples: int = 1
    stops: tuple[str, ...] = ()
    stop_ids: frozenset[int] | None = None
    num_alternatives: int = 0
    scores_prompt: bool = False
    num_hidden: tuple[int, ...] = ()
    shows_end: bool = False
    constraint: Callable[[], Constraint] | None = None
    chain: Callable[[Sequence[int], int], SamplerChain] | None = None
    tenant: str = ""
    adapter: str | None = None


@dataclass(frozen=True, kw_only=True)
class SampleDelta:
    """What is new of one sample; `finish_reason` comes with its last one."""

    prompt_index: int
    sample_index: int
    piece: TextPiece
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, kw_only=True)
class FinishedSample:
    """A whole sample. `mean_logprob`, of its new tokens, is -inf where there are none."""

    prompt_index: int
    sample_index: int
    piece: TextPiece
    finish_reason: FinishReason
    mean_logprob: float


@dataclass(frozen=True, kw_only=True)
class TokenUsage:
    """Tokens of a call: every prompt once, all samples' new ones, and reused ones of prompts."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


class SampleRun:
    """The samples of one call, from the first request to the engine to the last event.

    Used on the event loop, and once: `start`, then `deltas` or `finished`. Who does not read
    `deltas` to its end must `cancel`. Prompts fit with `max_tokens` into the context.
    """

    def __init__(
        self,
        service: TextService,
        prompts: Sequence[Sequence[int]],
        options: SampleOptions,
        *,
        record: RequestRecord,
    ) -> None:
        self._service, self._options, self._record = service, options, record
        self._prompts = prompts
        self._cached = [0] * len(prompts)
        # Where a prompt is only read, one sample stands for all.
        self._num_run = options.num_samples if options.max_tokens else 1
        self._samples = [
            SampleState(
                prompt_index=prompt,
                sample_index=index,
                writer=SampleWriter(service.tokenizer, stops=options.stops),
                times=service.times,
                waits_for_prompt=options.scores_prompt,
                num_hidden=options.num_hidden[prompt] if options.num_hidden else 0,
                shows_end=options.shows_end,
            )
            for prompt in range(len(prompts))
            for index in range(self._num_run)
        ]
        self._mailbox = _Mailbox()

    @property
    def usage(self) -> TokenUsage:
        """What has been used so far."""
        return TokenUsage(
            prompt_tokens=sum(len(ids) for ids in self._prompts),
            completion_tokens=sum(sample.writer.num_tokens for sample in self._samples),
            cached_tokens=sum(self._cached),
        )

    def start(self, *, is_whole: bool = False) -> "SampleRun":
        """Put all samples into the engine's queue, or none. `is_whole`: `finished` reads them.

        Raises UsageError, QueueFullError and EngineStoppedError as the engine does.
        """
        # A stop string is to end the work at once; else nothing needs to be looked at before.
        self._mailbox.is_patient = is_whole and not self._options.stops
        try:
            for number, sample in enumerate(self._samples):
                listener = partial(self._mailbox.post, number)
                sample.cancel = self._service.engine.submit(self._request(sample), listener)
        except BaseException:
            self.cancel()
            raise
        finally:
            self._record.on_placed()
        return self

    def cancel(self) -> None:
        """End all samples that still run."""
        for sample in self._samples:
            sample.end()

    async def deltas(self) -> AsyncGenerator[SampleDelta, None]:
        """New text of every sample as it becomes certain, each sample's end with its last.

        Raises ApiError for a sample that fails, and for a call that stays in the queue too long.
        """
        try:
            seconds: float | None = self._service.limits.wait.queue_seconds
            while any(sample.is_open for sample in self._samples):
                for letter in await self._next_letters(seconds):
                    for delta in self._take(self._samples[letter.number], letter):
                        yield delta
                seconds = None
        finally:
            self.cancel()

    async def finished(self) -> list[FinishedSample]:
        """All samples, whole, by prompt and number. Raises as `deltas`."""
        pieces: dict[tuple[int, int], list[TextPiece]] = {}
        reasons: dict[tuple[int, int], FinishReason] = {}
        async for delta in self.deltas():
            key = (delta.prompt_index, delta.sample_index)
            pieces.setdefault(key, []).append(delta.piece)
            if delta.finish_reason is not None:
                reasons[key] = delta.finish_reason
        return [
            FinishedSample(
                prompt_index=key[0],
                sample_index=key[1],
                piece=TextPiece.joined(pieces[key]),
                finish_reason=reasons[key],
                mean_logprob=self._state(*key).mean_logprob,
            )
            for key in sorted(pieces)
        ]

    def _state(self, prompt_index: int, sample_index: int) -> SampleState:
        return self._samples[prompt_index * self._num_run + min(sample_index, self._num_run - 1)]

    def _request(self, sample: SampleState) -> EngineRequest:
        options, prompt = self._options, self._prompts[sample.prompt_index]
        stop_ids = options.stop_ids
        chain = options.chain and options.chain(prompt, sample.sample_index)
        return EngineRequest(
            prompts=[prompt],
            max_tokens=options.max_tokens,
            sampling=SamplingParams(seed=options.sampling.seed) if chain else options.sampling,
            sample_index=sample.sample_index,
            stop_ids=self._service.conventions.stop_ids if stop_ids is None else stop_ids,
            num_alternatives=options.num_alternatives,
            scores_prompt=options.scores_prompt and sample.sample_index == 0,
            combine=chain.combine if chain else None,
            constraint=chain or (options.constraint and options.constraint()),
            tenant=options.tenant,
            adapter=options.adapter,
            is_patient=self._mailbox.is_patient,
        )

    async def _next_letters(self, seconds: float | None) -> "list[_Letter]":
        try:
            async with asyncio.timeout(seconds):
                return await self._mailbox.take()
        except TimeoutError:
            raise self._service.limits.wait.queue_timeout() from None

    def _take(self, sample: SampleState, letter: "_Letter") -> Iterator[SampleDelta]:
        """What an event adds to its sample, or a prompt's scores to all samples of the prompt."""
        match letter.event:
            case PromptProgress() as event:
                self._count_prompt(sample, event)
            case PromptScores() as event:
                begin = sample.prompt_index * self._num_run
                for other in self._samples[begin : begin + self._num_run]:
                    yield from self._deltas(other, other.take_prompt(event))
            case NewTokens() | Finished() as event:
                yield from self._deltas(sample, sample.take(event, at=letter.arrived))
            case Failed() as event:
                raise engine_failure(event)

    def _count_prompt(self, sample: SampleState, event: PromptProgress) -> None:
        if sample.sample_index == 0 and not sample.has_begun:
            sample.has_begun = True
            self._cached[sample.prompt_index] = event.num_cached
            self._record.add_prompt(num_tokens=event.num_tokens, num_cached=event.num_cached)

    def _deltas(self, sample: SampleState, news: SampleNews) -> Iterator[SampleDelta]:
        self._record.add_tokens(news.num_tokens)
        if not news.piece and news.finish_reason is None:
            return
        num_copies = 1 if self._num_run > 1 else self._options.num_samples
        for copy in range(num_copies):
            yield SampleDelta(
                prompt_index=sample.prompt_index,
                sample_index=sample.sample_index + copy,
                piece=news.piece,
                finish_reason=news.finish_reason,
            )


@dataclass(frozen=True, kw_only=True)
class _Letter:
    """An event, of which sample it is, and when it came (`time.monotonic`)."""

    number: int
    event: EngineEvent
    arrived: float


class _Mailbox:
    """Events of the engine's thread, read on the event loop: one wake-up for all that wait.

    While it `is_patient`, new tokens wake nobody: they are read with what follows them.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._letters: deque[_Letter] = deque()
        self._arrived = asyncio.Event()
        self._is_announced = False
        self.is_patient = False

    def post(self, number: int, event: EngineEvent) -> None:
        """Called on the engine's thread."""
        self._letters.append(_Letter(number=number, event=event, arrived=time.monotonic()))
        if self._is_announced or (self.is_patient and isinstance(event, NewTokens)):
            return
        self._is_announced = True
        with suppress(RuntimeError):  # The loop has ended: nobody reads any more.
            self._loop.call_soon_threadsafe(self._arrived.set)

    async def take(self) -> list[_Letter]:
        """All that has arrived, at least one, in order."""
        await self._arrived.wait()
        self._arrived.clear()
        # Before reading: what comes from now on announces itself again.
        self._is_announced = False
        return [self._letters.popleft() for _ in range(len(self._letters))]
