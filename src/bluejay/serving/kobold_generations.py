"""Generations of the Kobold API while they run and a little after: looked at, and ended, by key."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from typing import Final, TypeVar

from bluejay.generation.engine_requests import FinishReason
from bluejay.serving.samples import SampleDelta, SampleRun
from bluejay.text.sample_writer import WrittenToken
from bluejay.text.stop_strings import StopMatcher

MOST_KEPT: Final = 64
Owner = tuple[str, str]
"""Tenant and address: nobody else sees a generation, though keys of it are easily guessed."""
Item = TypeVar("Item")


@dataclass(kw_only=True, eq=False)
class Generation:
    """What has been written so far, of each sample; `tokens` are the first one's."""

    num_samples: int
    seed: int
    texts: list[str] = field(init=False)
    reasons: list[FinishReason | None] = field(init=False)
    tokens: list[WrittenToken] = field(default_factory=list)
    wants_logprobs: bool = False
    aborted: asyncio.Event = field(default_factory=asyncio.Event)
    is_running: bool = True
    began: float = field(default_factory=time.monotonic)
    first_text: float | None = None
    ended: float | None = None
    num_tokens: int = 0

    def __post_init__(self) -> None:
        self.texts = [""] * self.num_samples
        self.reasons = [None] * self.num_samples

    async def follow(
        self, run: SampleRun, kept_stops: Sequence[str]
    ) -> AsyncGenerator[tuple[int, str, FinishReason | None], None]:
        """New text of each sample, up to its end or `aborted`; the first of `kept_stops` ends a
        sample and belongs to it."""
        matchers = [StopMatcher(kept_stops) for _ in self.texts]
        async with aclosing(until(run.deltas(), self.aborted)) as deltas:
            async for delta in deltas:
                number = delta.sample_index
                if self.reasons[number] is None:
                    yield number, *self._take(delta, matchers[number])
                self.num_tokens = run.usage.completion_tokens
                if all(self.reasons):
                    return

    def _take(self, delta: SampleDelta, matcher: StopMatcher) -> tuple[str, FinishReason | None]:
        text, reason = matcher.feed(delta.piece.text), delta.finish_reason
        if matcher.found is not None:
            text, reason = text + matcher.found, "stop"
        elif reason is not None:
            text += matcher.flush()
        if text and self.first_text is None:
            self.first_text = time.monotonic()
        if delta.sample_index == 0:
            self.tokens += delta.piece.tokens
        self.texts[delta.sample_index] += text
        self.reasons[delta.sample_index] = reason
        return text, reason


class Generations:
    """All that run, and the last that have ended. Used on the event loop."""

    def __init__(self) -> None:
        self.num_begun = 0
        self._found: OrderedDict[tuple[Owner, str], Generation] = OrderedDict()

    def open(self, owner: Owner, key: str, generation: Generation) -> None:
        """A generation begins; one with the same key is found no more."""
        self.num_begun += 1
        self._found.pop((owner, key), None)
        self._found[owner, key] = generation

    def close(self, generation: Generation) -> None:
        """It has ended; its text is kept until others have ended after it."""
        generation.is_running = False
        generation.ended = generation.ended or time.monotonic()
        ended = [key for key, one in self._found.items() if not one.is_running]
        for key in ended[: max(0, len(ended) - MOST_KEPT)]:
            del self._found[key]

    def find(self, owner: Owner, key: str | None) -> Generation | None:
        """By key; without one the owner's only one that runs."""
        if key:
            return self._found.get((owner, key))
        running = [one for one in self._of(owner) if one.is_running]
        return running[0] if len(running) == 1 else None

    def last(self, owner: Owner) -> Generation | None:
        """The owner's last that has ended."""
        ended = [one for one in self._of(owner) if one.ended is not None]
        return max(ended, key=lambda one: one.ended or 0.0, default=None)

    def _of(self, owner: Owner) -> list[Generation]:
        return [one for (whose, _), one in self._found.items() if whose == owner]


async def until(
    items: AsyncGenerator[Item, None], event: asyncio.Event
) -> AsyncGenerator[Item, None]:
    """The items that come before the event; then they are closed."""
    waiting = asyncio.create_task(event.wait())
    step: asyncio.Future[Item] | None = None
    try:
        while True:
            step = asyncio.ensure_future(anext(items))
            await asyncio.wait((step, waiting), return_when=asyncio.FIRST_COMPLETED)
            if not step.done():
                return
            try:
                yield step.result()
            except StopAsyncIteration:
                return
    finally:
        waiting.cancel()
        if step is not None and not step.done():
            step.cancel()
            with suppress(asyncio.CancelledError):
                await step
        await items.aclose()
