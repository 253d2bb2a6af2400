"""Two ways to load a server: a fixed number of clients, or arrivals at random times at a rate."""

import asyncio
import gc
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from serve_http import Call, Client, Reply
from serve_replies import Outcome, read_reply

_LAG_SECONDS = 0.02
_BREATH_SECONDS = 0.05


@dataclass(kw_only=True)
class Load:
    """Replies of one measurement, and what the generator itself took.

    `began` and `ended` bound what counts: with a duration, what ends later is waited for and counts
    with its share. `cpu_seconds` are this process's own, `lags` how late it came to its events.
    """

    replies: list[Reply] = field(default_factory=list)
    began: float = 0.0
    ended: float = 0.0
    cpu_seconds: float = 0.0
    lags: list[float] = field(default_factory=list)
    _outcomes: list[Outcome] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        return self.ended - self.began

    @property
    def outcomes(self) -> list[Outcome]:
        """What the clients saw, made out once the load is over."""
        if len(self._outcomes) != len(self.replies):
            self._outcomes = [read_reply(reply) for reply in self.replies]
        return self._outcomes


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How long: for `seconds`, or for `requests` requests; before it `warm_up` that do not count.

    `after` is told of every reply as it comes; what it returns is how long that client waits (a
    moment after a failure, without it).
    """

    seconds: float | None = None
    requests: int | None = None
    warm_up: int = 0
    after: Callable[[Reply], float] | None = None


async def fixed_clients(
    client: Client, calls: Iterator[Call], extent: Extent, *, num_clients: int
) -> Load:
    """Each of the clients sends its next request when the one before it is answered."""
    await _warm_up(client, calls, extent, num_clients)
    async with _measuring(extent) as load:
        deadline = None if extent.seconds is None else load.began + extent.seconds
        left = _counter(extent.requests)

        async def one_client() -> None:
            while (deadline is None or time.perf_counter() < deadline) and next(left, False):
                reply = await client.send(next(calls))
                load.replies.append(reply)
                pause = extent.after(reply) if extent.after else _pause(reply)
                if pause:
                    await asyncio.sleep(pause)

        await asyncio.gather(*(one_client() for _ in range(num_clients)))
    return load


async def poisson(
    client: Client, calls: Iterator[Call], extent: Extent, *, rate: float, seed: int = 0
) -> Load:
    """`rate` requests a second on average, at times that know nothing of each other or of the
    server: a slow server does not slow them down."""
    await _warm_up(client, calls, extent, num_clients=1)
    draw, tasks = random.Random(seed), set()
    async with _measuring(extent) as load:
        due = load.began
        left = _counter(extent.requests)

        async def one_request() -> None:
            reply = await client.send(next(calls))
            load.replies.append(reply)
            if extent.after:
                extent.after(reply)

        while True:
            due += draw.expovariate(rate)
            is_late = extent.seconds is not None and due - load.began > extent.seconds
            if is_late or not next(left, False):
                break
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.add(asyncio.ensure_future(one_request()))
        await asyncio.gather(*tasks)
    return load


async def one_by_one(client: Client, calls: Iterator[Call], *, requests: int) -> list[Outcome]:
    """Outcomes of that many requests, each alone."""
    load = await fixed_clients(client, calls, Extent(requests=requests), num_clients=1)
    return load.outcomes


async def _warm_up(client: Client, calls: Iterator[Call], extent: Extent, num_clients: int) -> None:
    left = iter(range(extent.warm_up))

    async def one_client() -> None:
        for _ in left:
            await client.send(next(calls))

    await asyncio.gather(*(one_client() for _ in range(num_clients)))


@asynccontextmanager
async def _measuring(extent: Extent) -> AsyncIterator[Load]:
    """The times around a measurement; no garbage is collected inside it."""
    load = Load()
    gc.collect()
    gc.disable()
    watching = asyncio.ensure_future(_watch_lags(load))
    load.began, cpu = time.perf_counter(), time.process_time()
    try:
        yield load
    finally:
        watching.cancel()
        gc.enable()
        load.cpu_seconds = time.process_time() - cpu
    over = time.perf_counter()
    load.ended = min(over, load.began + extent.seconds) if extent.seconds else over


async def _watch_lags(load: Load) -> None:
    while True:
        due = time.perf_counter() + _LAG_SECONDS
        await asyncio.sleep(_LAG_SECONDS)
        load.lags.append(time.perf_counter() - due)


def _pause(reply: Reply) -> float:
    """Who is refused or cut off takes a breath, as any client does."""
    return 0.0 if reply.status == 200 and not reply.failure else _BREATH_SECONDS


def _counter(limit: int | None) -> Iterator[bool]:
    number = 0
    while limit is None or number < limit:
        number += 1
        yield True
