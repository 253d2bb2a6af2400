"""An engine of the seam without a model: on its own thread it answers what a function says."""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from bluejay.core.errors import UsageError
from bluejay.generation.engine_requests import (
    Constraint,
    EngineEvent,
    EngineLimits,
    EngineRequest,
    EngineStatus,
    EngineStoppedError,
    Finished,
    Listener,
    NewTokens,
    PromptProgress,
    PromptScores,
    QueueFullError,
    TokenScore,
)
from bluejay.generation.sampling_params import SamplingParams
from bluejay.vocab.tokenizer import Tokenizer

Answer = Callable[[EngineRequest], Iterator[EngineEvent]]


@dataclass(kw_only=True)
class _Job:
    request: EngineRequest
    listener: Listener
    is_cancelled: bool = False


class FakeEngine:
    """Runs requests one after another, one event at a time, as `answer` makes them.

    `hold` keeps it from beginning anything, so that a queue forms. `requests` are all that were
    accepted, `num_made` counts the new tokens that were made, `cancelled` those that were cut off.
    """

    def __init__(self, answer: Answer, *, limits: EngineLimits | None = None) -> None:
        self.answer = answer
        self.limits = limits or EngineLimits()
        self.requests: list[EngineRequest] = []
        self.cancelled: list[EngineRequest] = []
        self.num_made = 0
        self.is_stopped = False
        self._jobs: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_held = False
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def submit(self, request: EngineRequest, listener: Listener) -> Callable[[], None]:
        if self.is_stopped:
            raise EngineStoppedError("The engine takes no more requests.")
        for prompt in request.prompts:
            if len(prompt) + request.max_tokens > self.limits.context_length:
                raise UsageError("The prompt does not fit.")
        job = _Job(request=request, listener=listener)
        with self._changed:
            if len(self._jobs) >= self.limits.queued_requests:
                raise QueueFullError("The queue is full.", limit="queued_requests")
            self.requests.append(request)
            self._jobs.append(job)
            self._changed.notify()

        def cancel() -> None:
            with self._changed:
                if not job.is_cancelled:
                    job.is_cancelled = True
                    self.cancelled.append(request)

        return cancel

    def require_place(self, num_ahead: int = 0) -> None:
        with self._changed:
            if len(self._jobs) + num_ahead >= self.limits.queued_requests:
                raise QueueFullError("The queue is full.", limit="queued_requests")

    def status(self) -> EngineStatus:
        return EngineStatus(
            is_ready=True,
            is_failed=False,
            slots_in_use=0,
            queued_requests=len(self._jobs),
            queued_tokens=0,
            prompt_tokens=0,
            cached_prompt_tokens=0,
            new_tokens=self.num_made,
            finished=0,
            cancelled=len(self.cancelled),
            failed=0,
            rejected=0,
            recompiles=0,
        )

    def hold(self) -> None:
        self._is_held = True

    def release(self) -> None:
        with self._changed:
            self._is_held = False
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        self._thread.join()

    def _may_go_on(self) -> bool:
        return self._is_closed or bool(self._jobs and not self._is_held)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._is_closed or (self._jobs and not self._is_held)
                )
                if self._is_closed:
                    return
                job = self._jobs.popleft()
            for event in self.answer(job.request):
                with self._changed:
                    if job.is_cancelled or self._is_closed:
                        break
                    if isinstance(event, NewTokens):
                        self.num_made += len(event.scores)
                job.listener(event)


class TinyModel:
    """A model whose next id depends on the last one alone: a table of scores.

    It prefers letters, and ends now and then. `answer` is for FakeEngine.
    """

    def __init__(self, tokenizer: Tokenizer, num_rows: int, *, seed: int = 0) -> None:
        self.allowed = tokenizer.sampleable_mask(num_rows)
        generator = np.random.default_rng(seed)
        self._scores = generator.normal(size=(num_rows, num_rows)).astype(np.float32) * 2
        table = tokenizer.token_bytes_table()
        letters = [i for i, data in enumerate(table) if data and data.strip(b" ").isalpha()]
        self._scores[:, letters] += 6

    def logprobs(self, last: int) -> NDArray[np.float64]:
        """[V] log probability of each id behind `last`."""
        scores = np.where(self.allowed, self._scores[last].astype(np.float64), -np.inf)
        largest = scores.max()
        return scores - largest - np.log(np.exp(scores - largest).sum())

    def score(self, last: int, token: int, num_alternatives: int) -> TokenScore:
        row = self.logprobs(last)
        best = np.argsort(-row, kind="stable")[:num_alternatives]
        return TokenScore(
            id=token,
            logprob=float(row[token]),
            alternatives=tuple((int(i), float(row[i])) for i in best),
        )

    def answer(self, request: EngineRequest) -> Iterator[EngineEvent]:
        [prompt] = request.prompts
        wanted = request.num_alternatives
        yield PromptProgress(num_done=len(prompt), num_tokens=len(prompt), num_cached=0)
        if request.scores_prompt:
            first = TokenScore(id=prompt[0], logprob=None)
            pairs = pairwise(prompt)
            yield PromptScores(
                scores=(first, *(self.score(last, token, wanted) for last, token in pairs))
            )
        last = prompt[-1]
        for position in range(request.max_tokens):
            allowed = _allowed(request.constraint)
            row = self.logprobs(last) + np.where(allowed, 0, -np.inf)
            if request.combine is not None:
                row = request.combine(row[None].astype(np.float32)).astype(np.float64)
            token = _choose(row, request.sampling, (request.sample_index, position))
            if token in request.stop_ids:
                yield Finished(reason="stop", end=self.score(last, token, wanted))
                return
            if request.constraint is not None:
                request.constraint.accept(token)
            yield NewTokens(scores=(self.score(last, token, wanted),))
            if request.constraint is not None and request.constraint.is_complete:
                yield Finished(reason="stop")
                return
            last = token
        yield Finished(reason="length")


def scripted(ids: Sequence[int], *, num_cached: int = 0, per_event: int = 1) -> Answer:
    """Gives these ids, as many as are asked for, each with the log probability -id / 100."""

    def answer(request: EngineRequest) -> Iterator[EngineEvent]:
        [prompt] = request.prompts
        yield PromptProgress(num_done=0, num_tokens=len(prompt), num_cached=num_cached)
        if request.scores_prompt:
            scores = [TokenScore(id=i, logprob=-i / 100) for i in prompt]
            yield PromptScores(scores=(TokenScore(id=prompt[0], logprob=None), *scores[1:]))
        for begin in range(0, len(ids), per_event):
            taken = ids[begin : min(begin + per_event, request.max_tokens)]
            stopped = [i for i in taken if i in request.stop_ids]
            if stopped:
                taken = taken[: list(taken).index(stopped[0])]
            if taken:
                yield NewTokens(scores=tuple(TokenScore(id=i, logprob=-i / 100) for i in taken))
            if stopped:
                yield Finished(reason="stop")
                return
            if begin + per_event >= request.max_tokens:
                break
        yield Finished(reason="length" if len(ids) >= request.max_tokens else "stop")

    return answer


def _allowed(constraint: Constraint | None) -> NDArray[np.bool_]:
    return np.asarray(True) if constraint is None else constraint.allowed()


def _choose(row: NDArray[np.float64], sampling: SamplingParams, draw: tuple[int, int]) -> int:
    row = row.copy()
    for token, bias in sampling.logit_bias.items():
        row[token] += bias
    if sampling.temperature == 0:
        return int(row.argmax())
    weights = np.exp((row - row.max()) / sampling.temperature)
    generator = np.random.default_rng((sampling.seed, *draw))
    return int(generator.choice(len(row), p=weights / weights.sum()))
