"""Work beside the engine: a bounded queue before few workers, tenants in turn."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Generic, Protocol, TypeVar

from bluejay.serving.errors import queue_full
from bluejay.serving.limits import Limits

Result = TypeVar("Result")
Work = TypeVar("Work", contravariant=True)
Made = TypeVar("Made")


class Workers(Protocol[Work, Made]):
    """Who does the work, `num_at_once` pieces at the same time."""

    @property
    def num_at_once(self) -> int: ...

    def submit(self, work: Work) -> "Future[Made]": ...


class OneThread:
    """Calls functions, one after the other."""

    num_at_once = 1

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"bluejay-{name}")

    def submit(self, work: Callable[[], Result]) -> "Future[Result]":
        return self._thread.submit(work)


class Desk(Generic[Work, Made]):
    """Gives pieces of calls to its workers. Used on the event loop.

    `name` is a field of `DeskLimits`: at most so many calls are let in, those that are being worked
    on among them. Tenants take turns by pieces, so that many texts of one do not stop another's
    single one.
    """

    def __init__(self, limits: Limits, name: str, workers: Workers[Work, Made]) -> None:
        self._limits, self._name, self._workers = limits, name, workers
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._num_calls, self._num_free = 0, workers.num_at_once

    @contextmanager
    def place(self) -> Iterator[None]:
        """A call is let in for as long as the block lasts. ApiError 429 for one too many."""
        bounds = self._limits.desk
        most = getattr(bounds, self._name)
        if self._num_calls >= most:
            raise queue_full(
                f"The queue of {bounds.unit(self._name)} is full: it has {self._num_calls} and the"
                f" limit is {most}. Try again later, or raise the limit with the server's"
                f" {bounds.flag(self._name)}.",
                code="queue_full",
            )
        self._num_calls += 1
        try:
            yield
        finally:
            self._num_calls -= 1

    async def turn(self, work: Work, *, tenant: str) -> Made:
        """What `work` gives when the tenant's turn has come.

        Cancelled before, it never begins; cancelled while it runs, a worker is taken until it ends.
        ApiError 503 for a turn that does not come in time.
        """
        await self._wait(tenant)
        running = self._workers.submit(work)
        loop = asyncio.get_running_loop()
        running.add_done_callback(lambda _: self._free_from(loop))
        return await asyncio.wrap_future(running)

    async def _wait(self, tenant: str) -> None:
        """Return when a worker is this call's."""
        ticket: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(ticket)
        self._call_next()
        try:
            async with asyncio.timeout(self._limits.wait.queue_seconds):
                await ticket
        except BaseException as error:
            if ticket.done() and not ticket.cancelled():
                self._free()  # its turn had come in that very moment
            else:
                self._leave(tenant, ticket)
            if isinstance(error, TimeoutError):
                raise self._limits.wait.queue_timeout() from None
            raise

    def _leave(self, tenant: str, ticket: "asyncio.Future[None]") -> None:
        """Whoever has left is called no more."""
        ticket.cancel()
        line = self._waiting.get(tenant)
        if line is not None and ticket in line:
            line.remove(ticket)
            if not line:
                del self._waiting[tenant]

    def _call_next(self) -> None:
        """A worker goes to the tenant who has waited for it longest."""
        while self._waiting and self._num_free:
            tenant = next(iter(self._waiting))
            line = self._waiting.pop(tenant)
            ticket = line.popleft()
            if line:
                self._waiting[tenant] = line  # behind all others
            if not ticket.done():  # else its call was cancelled, and is to leave in a moment
                self._num_free -= 1
                ticket.set_result(None)

    def _free_from(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # The loop has ended.
            loop.call_soon_threadsafe(self._free)

    def _free(self) -> None:
        self._num_free += 1
        self._call_next()
