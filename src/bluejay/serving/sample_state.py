"""One sample of a call while it runs: its events in, what is new of its text out."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bluejay.generation.engine_requests import (
    Finished,
    FinishReason,
    NewTokens,
    PromptScores,
    TokenScore,
)
from bluejay.serving.service import TokenTimes
from bluejay.text.sample_writer import SampleWriter, TextPiece


@dataclass(frozen=True, kw_only=True)
class SampleNews:
    """What events added to a sample: text, how many tokens, and whether that was the end."""

    piece: TextPiece = field(default_factory=TextPiece)
    num_tokens: int = 0
    finish_reason: FinishReason | None = None

    def __add__(self, other: "SampleNews") -> "SampleNews":
        return SampleNews(
            piece=self.piece + other.piece,
            num_tokens=self.num_tokens + other.num_tokens,
            finish_reason=self.finish_reason or other.finish_reason,
        )


@dataclass(kw_only=True)
class SampleState:
    """A sample that `waits_for_prompt` holds its own tokens back until the prompt's scores come:
    one sample of a prompt asks for them, for all. The first `num_hidden` of them are not shown, the
    stop id that ends the sample only if it `shows_end`."""

    prompt_index: int
    sample_index: int
    writer: SampleWriter
    times: TokenTimes
    waits_for_prompt: bool = False
    num_hidden: int = 0
    shows_end: bool = False
    cancel: Callable[[], None] | None = None
    is_open: bool = True
    has_begun: bool = False
    _held: list[tuple[NewTokens | Finished, float]] = field(default_factory=list)
    _logprob_sum: float = 0.0
    _last_time: float = field(default_factory=time.monotonic)
    _has_tokens: bool = False

    @property
    def mean_logprob(self) -> float:
        """Of the new tokens, in nats; -inf where there are none."""
        count = self.writer.num_tokens
        return self._logprob_sum / count if count else -math.inf

    def take_prompt(self, event: PromptScores) -> SampleNews:
        """The prompt's tokens, and what came before their scores did."""
        self.waits_for_prompt = False
        shown = event.scores[self.num_hidden :]
        # What stands before the first is not of the client, so neither is its probability.
        first = [TokenScore(id=score.id, logprob=None) for score in shown[:1]]
        news = SampleNews(piece=self.writer.write_prompt([*first, *shown[1:]]))
        for held, at in self._held:
            news += self.take(held, at=at)
        self._held.clear()
        return news

    def take(self, event: NewTokens | Finished, *, at: float) -> SampleNews:
        """The engine's next event, and when it came. Nothing comes of one after the end."""
        if not self.is_open:
            return SampleNews()
        if self.waits_for_prompt:
            self._held.append((event, at))
            return SampleNews()
        if isinstance(event, Finished):
            return self._finish(event.reason, event.end if self.shows_end else None)
        return self._write(event.scores, at)

    def end(self) -> None:
        """Nothing more is wanted: the engine stops working on it."""
        if self.is_open:
            self.is_open = False
            if self.cancel is not None:
                self.cancel()

    def _write(self, scores: Sequence[TokenScore], at: float) -> SampleNews:
        num_before = self.writer.num_tokens
        piece = self.writer.write(scores)
        num_new = self.writer.num_tokens - num_before
        self._logprob_sum += math.fsum(score.logprob or 0.0 for score in scores[:num_new])
        self._keep_time(num_new, at)
        news = SampleNews(piece=piece, num_tokens=num_new)
        if self.writer.is_stopped:
            self.end()
            news += self._finish("stop")
        return news

    def _finish(self, reason: FinishReason, end: TokenScore | None = None) -> SampleNews:
        self.is_open = False
        piece = self.writer.finish(end)
        # The end of the text may complete a stop string: half a character has become U+FFFD.
        return SampleNews(piece=piece, finish_reason="stop" if self.writer.is_stopped else reason)

    def _keep_time(self, num_new: int, at: float) -> None:
        if not num_new:
            return
        seconds, self._last_time = at - self._last_time, at
        if self._has_tokens:
            self.times.more_tokens(seconds, num_new)
        else:
            self._has_tokens = True
            self.times.first_token(seconds)
            if num_new > 1:
                self.times.more_tokens(0.0, num_new - 1)
