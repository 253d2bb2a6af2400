"""Two modes of their own kind: a server that has just been started, and people at a keyboard."""

import asyncio
import random
import shlex
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from statistics import median
from typing import Any

from serve_bench import Bench
from serve_http import Call, Reply
from serve_load import Extent, fixed_clients
from serve_replies import read_reply
from serve_report import Check, Verdict, first_token_times, percentile, percentiles
from serve_requests import text_from

_READY_LIMIT_SECONDS = 600.0
_POLL_SECONDS = 0.05
_KEY_SECONDS = 0.05
_CHECKED_AGAIN = 20


async def start(bench: Bench) -> Verdict:
    """L10: clients come while the server starts. Until it is ready they are refused, and the first
    that are let in wait no longer than later ones, so that none of them waits for a compiler."""
    if bench.start is None:
        missing = Check(name="started", passed=None, said="--start was not given")
        return Verdict(mode="L10", title="start", checks=(missing,))
    began = time.perf_counter()
    process = subprocess.Popen(shlex.split(bench.start), stderr=subprocess.DEVNULL)
    try:
        ready = asyncio.ensure_future(_wait_until_ready(bench, process))
        knocks = await _knock(bench, ready)
        is_ready = ready.result()
        first = await _first_tokens(bench, bench.scale.saturating)
        later = await _first_tokens(bench, 2 * bench.scale.saturating)
        recompiles = (await bench.counters()).get("recompiles")
    finally:
        process.terminate()
        code = await asyncio.to_thread(process.wait, 60)
    # The last look at /ready may be as old as the pause between two.
    known = (is_ready or time.perf_counter()) - 2 * _POLL_SECONDS
    kinds = Counter(read_reply(reply).kind for reply in knocks if reply.ended < known)
    usual, slowest = median(later or [0.0]), max(first, default=0.0)
    checks = (
        Check(
            name="ready in the end",
            passed=is_ready is not None,
            said="no" if is_ready is None else f"after {is_ready - began:.1f} s",
        ),
        Check(
            name="before that refused, or answered 503",
            passed=set(kinds) <= {"refused", "reset", "http 503"},
            said=", ".join(f"{num} {kind}" for kind, num in sorted(kinds.items())) or "none came",
        ),
        Check(
            name="first to be let in wait at most 3 times as long as later ones",
            passed=bool(first) and slowest <= 3 * usual,
            said=f"slowest {1000 * slowest:.0f} ms, later p50 {1000 * usual:.0f} ms",
        ),
        Check(
            name="no recompiles",
            passed=None if recompiles is None else recompiles == 0,
            said="/metrics does not tell" if recompiles is None else f"{recompiles:.0f}",
        ),
        Check(name="SIGTERM ends it with 0", passed=code == 0, said=str(code)),
    )
    return Verdict(mode="L10", title="start", checks=checks)


async def keyboard(bench: Bench) -> Verdict:
    """L11: typists ask for suggestions with every key and drop the request of the key before.

    A key whose reply had not come when the next was pressed counts with the time between keys.
    """
    typists = [Typist(bench=bench, number=n) for n in range(bench.scale.typists)]
    await asyncio.gather(*(typist.type_text() for typist in typists))
    times = [seconds for typist in typists for seconds in typist.times]
    wrong = Counter(kind for typist in typists for kind in typist.wrong)
    answered = [pair for typist in typists for pair in typist.answered]
    stale = await _stale(bench, answered)
    tail = percentile(times, 95) or 0.0
    dropped = sum(typist.num_dropped for typist in typists)
    checks = (
        Check(
            name="p95 from key to reply at most 50 ms",
            passed=bool(times) and tail <= _KEY_SECONDS,
            said=f"{1000 * tail:.1f} ms of {len(times)} keys, {dropped} dropped",
        ),
        Check(
            name="no reply for another text",
            passed=bool(answered) and stale == 0,
            said=f"{stale} of {min(len(answered), _CHECKED_AGAIN)} differ when asked alone",
        ),
        Check(
            name="no errors",
            passed=not wrong,
            said=", ".join(f"{num} {kind}" for kind, num in wrong.items()) or "none",
        ),
    )
    found = {"key_ms": percentiles(times), "dropped": dropped}
    return Verdict(mode="L11", title="keyboard", checks=checks, figures=found)


@dataclass(kw_only=True)
class Typist:
    """Types one text, a letter at a time; all typists strike at moments of their own."""

    bench: Bench
    number: int
    times: list[float] = field(default_factory=list)
    answered: list[tuple[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    num_dropped: int = 0

    async def type_text(self) -> None:
        scale = self.bench.scale
        pause, draw = 1.0 / scale.keys_per_second, random.Random(self.number)
        text = text_from(draw.randrange(10_000), scale.keys)[: scale.keys]
        due = time.perf_counter() + draw.uniform(0.0, pause)
        for end in range(1, len(text) + 1):
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            due += pause
            call = suggest_call(text[:end], drop_after=max(0.001, due - time.perf_counter()))
            self._take(text[:end], await self.bench.client.send(call), pause)

    def _take(self, text: str, reply: Reply, pause: float) -> None:
        if reply.failure == "cancelled":
            self.num_dropped += 1
            self.times.append(pause)
        elif reply.status != 200 or reply.failure:
            self.wrong.append(reply.failure or f"http {reply.status}")
        else:
            self.times.append(reply.ended - reply.sent)
            self.answered.append((text, _suggestions(reply)))


def suggest_call(text: str, *, drop_after: float | None = None) -> Call:
    """A request for the next words."""
    return Call(path="/v1/suggest", document={"text": text, "k": 3}, cancel_after=drop_after)


def _suggestions(reply: Reply) -> Any:
    """What the reply says of words; ids and times of the reply are left out."""
    document = reply.document()
    return document.get("suggestions", document) if isinstance(document, dict) else document


async def _stale(bench: Bench, answered: list[tuple[str, Any]]) -> int:
    """How many of some answers are not what the same text gets when nobody else asks."""
    chosen = random.Random(0).sample(answered, min(len(answered), _CHECKED_AGAIN))
    alone = [_suggestions(await bench.client.send(suggest_call(text))) for text, _ in chosen]
    return sum(again != shown for again, (_, shown) in zip(alone, chosen, strict=True))


async def _wait_until_ready(bench: Bench, process: subprocess.Popen[bytes]) -> float | None:
    deadline = time.perf_counter() + _READY_LIMIT_SECONDS
    while time.perf_counter() < deadline and process.poll() is None:
        if (await bench.client.get("/ready")).status == 200:
            return time.perf_counter()
        await asyncio.sleep(_POLL_SECONDS)
    return None


async def _knock(bench: Bench, ready: "asyncio.Future[float | None]") -> list[Reply]:
    """Replies to requests that were sent before the server said that it was ready."""
    calls, replies = bench.mix.calls(), []
    while not ready.done():
        replies.append(await bench.client.send(next(calls)))
        await asyncio.sleep(_POLL_SECONDS)
    return replies


async def _first_tokens(bench: Bench, requests: int) -> list[float]:
    calls = replace(bench.mix, streams=True).calls()
    extent = Extent(requests=requests)
    load = await fixed_clients(bench.client, calls, extent, num_clients=bench.scale.slots)
    return first_token_times(load.outcomes)
