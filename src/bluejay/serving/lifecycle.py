"""The life of the server: it serves, drains, and stops."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from bluejay.serving.errors import ApiError, unavailable

LAST_WORDS_SECONDS = 3.0
"""For error frames to be written after the drain; only a client that does not read needs it."""


class Lifecycle:
    """Counts the calls that run, and ends them when the server must stop. One event loop only.

    `on_drain` is called with the number of calls that run when the end begins.
    """

    def __init__(self) -> None:
        self.on_drain: Callable[[int], None] = lambda num_calls: None
        self._num_calls = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self.is_draining = False
        self.stopping = asyncio.Event()
        # What is told to calls that run when it stops, and to all that come if it serves no more.
        self.last_words: Callable[[], ApiError] = partial(
            unavailable, "The server stopped before the answer was complete.", code="stopped"
        )
        self.refusal: Callable[[], ApiError] | None = None

    @contextmanager
    def call(self) -> Iterator[None]:
        """A call runs inside the block."""
        self._num_calls += 1
        self._idle.clear()
        try:
            yield
        finally:
            self._num_calls -= 1
            if not self._num_calls:
                self._idle.set()

    async def drain(self, seconds: float) -> None:
        """Take no new work, let calls finish for `seconds`, then have each say its last words."""
        self.is_draining = True
        self.on_drain(self._num_calls)
        await self._wait(seconds)
        self.stopping.set()
        await self._wait(LAST_WORDS_SECONDS)

    def give_up(self, told: Callable[[], ApiError]) -> None:
        """End every call that runs, and refuse every other one."""
        self.refusal = self.last_words = told
        self.stopping.set()

    async def _wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._idle.wait()
