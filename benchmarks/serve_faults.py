"""Modes in which clients misbehave: they retry, hang up, send nonsense, or nothing at all."""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from statistics import median
from typing import Any

from serve_bench import Bench, slope_per_thousand
from serve_http import Call, Reply
from serve_load import Extent, fixed_clients
from serve_modes import no_errors, with_scores
from serve_replies import read_reply
from serve_report import Check, Verdict, figures, first_token_times, percentile, percentiles
from serve_requests import bad_calls

_SPARE_FILES = 4
_SLOPE_MB = 1.0
_CLOSING_SECONDS = 0.3
# From a closed socket through two event loops that share their cores with the engine.
_NEWS_SECONDS = 0.005
_HEAD_SECONDS = 6.0
_HALF_A_HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: "
_SOAK_CLIENTS = 16
_SOAK_LONGEST = 320


async def retry_storm(bench: Bench) -> Verdict:
    """L4: the openai client as it comes, two retries each, all at once.

    The work time is that of the tokens that were written, at the rate of L2.
    """
    usual = await bench.saturated()
    before = (await bench.counters()).get("new_tokens")
    sent, results = await _storm(bench)
    idle = await bench.seconds_until_idle()
    drained = time.perf_counter() - min(sent, default=0.0)
    tokens = sum(result for result in results if isinstance(result, int))
    if before is not None:
        tokens = int((await bench.counters())["new_tokens"] - before)
    work = tokens / max(usual["output_tokens_per_second"], 1e-9)
    kinds = Counter("ok" if isinstance(r, int) else r for r in results)
    most = 3 * bench.scale.storm
    found = {"seconds": round(drained, 3), "work_seconds": round(work, 3), "http": len(sent)}
    checks = (
        Check(
            name="only whole answers or refusals",
            passed=set(kinds) <= {"ok", "RateLimitError"} and kinds["ok"] > 0,
            said=", ".join(f"{num} {kind}" for kind, num in sorted(kinds.items())),
        ),
        Check(
            name="idle after at most twice the work time",
            passed=idle is not None and drained <= 2 * work,
            said=f"{drained:.2f} s of {work:.2f} s",
        ),
        Check(
            name="each request sent at most 3 times",
            passed=len(sent) <= most,
            said=f"{len(sent)} for {bench.scale.storm}",
        ),
    )
    return Verdict(
        mode="L4", title="retry storm", checks=checks, figures=found | {"kinds": dict(kinds)}
    )


async def cancel(bench: Bench) -> Verdict:
    """L5: every client hangs up at a random moment: queued, while the prompt is read, or later.

    How much is computed after the drop is measured with one client at a time, where the server's
    own count of tokens can be told apart by request.
    """
    files = await _idle_files(bench)
    usual = await bench.load(1, seconds=min(2.0, bench.scale.seconds))
    whole = percentile([outcome.seconds for outcome in usual.outcomes], 50) or 1.0
    draw = random.Random(bench.mix.seed)
    load = await fixed_clients(
        bench.client,
        _dropped(bench, draw, whole * bench.scale.saturating / bench.scale.slots),
        Extent(requests=bench.scale.drops),
        num_clients=bench.scale.saturating,
    )
    idle = await bench.seconds_until_idle(limit=10.0)
    kinds = Counter(outcome.kind for outcome in load.outcomes)
    excess, freed, gap = await _drop_alone(bench, draw, whole)
    files_after = await _idle_files(bench)
    found = {"kinds": dict(kinds), "slot_free_ms": percentiles(freed), "tokens_after_drop": excess}
    checks = (
        Check(
            name="only whole or cancelled",
            passed=set(kinds) <= {"ok", "cancelled"} and kinds["cancelled"] > 0,
            said=", ".join(f"{num} {kind}" for kind, num in sorted(kinds.items())),
        ),
        Check(
            name="no slot and no place in the queue stays taken",
            passed=idle is not None,
            said="idle" if idle is not None else "not idle after 10 s",
        ),
        _tokens_after_drop(excess, gap),
        _files(files, files_after),
    )
    return Verdict(mode="L5", title="cancel", checks=checks, figures=found)


async def soak(bench: Bench) -> Verdict:
    """L6: thousands of mixed requests, a fifth of them bad, a tenth cut off. The first fifth warms
    the server up; what grows is judged over the rest."""
    number = bench.scale.soak
    every, samples, files = max(1, number // 50), [], []
    done = 0

    def after(_reply: Reply) -> float:
        nonlocal done
        done += 1
        if bench.pid is not None and done % every == 0 and done > number // 5:
            samples.append((done, bench.resident_mb() or 0.0))
            files.append(bench.num_files() or 0)
        return 0.0

    warm = await fixed_clients(
        bench.client,
        _soaking(bench, seed=1),
        Extent(requests=number // 5, after=after),
        num_clients=_SOAK_CLIENTS,
    )
    recompiles = (await bench.counters()).get("recompiles")
    load = await fixed_clients(
        bench.client,
        _soaking(bench, seed=2),
        Extent(requests=number - number // 5, after=after),
        num_clients=_SOAK_CLIENTS,
    )
    idle = await bench.seconds_until_idle(limit=10.0)
    since = (await bench.counters()).get("recompiles", 0.0) - (recompiles or 0.0)
    replies = warm.replies + load.replies
    found = figures(load) | {"resident_mb": samples, "files": files}
    checks = (
        *_soak_answers(replies),
        _slope(samples),
        _flat_files(files),
        Check(
            name="no recompiles after the warm-up",
            passed=since == 0 if recompiles is not None else None,
            said=f"{since:.0f}" if recompiles is not None else "/metrics does not tell",
        ),
        _no_tracebacks(bench.num_tracebacks()),
        Check(name="idle at the end", passed=idle is not None, said=f"after {idle or 10:.2f} s"),
    )
    return Verdict(mode="L6", title="soak", checks=checks, figures=found)


async def slowloris(bench: Bench) -> Verdict:
    """L9: hundreds of clients that never finish their request's head, beside as many good ones as
    there are slots."""
    seconds = max(_HEAD_SECONDS * 4 / 3, bench.scale.seconds / 4)
    alone = await bench.load(bench.scale.slots, seconds=seconds)
    good = asyncio.ensure_future(bench.load(bench.scale.slots, seconds=seconds))
    await asyncio.sleep(_HEAD_SECONDS / 12)
    opened = [_half_open(bench, seconds) for _ in range(bench.scale.attackers)]
    times = await asyncio.gather(*opened)
    beside = await good
    late = [t for t in times if t is None or t > _HEAD_SECONDS]
    slowest = max((t for t in times if t is not None), default=0.0)
    first = [percentile(first_token_times(load.outcomes), 95) for load in (alone, beside)]
    rates = [figures(load)["output_tokens_per_second"] for load in (alone, beside)]
    checks = (
        no_errors(beside.outcomes),
        Check(
            name="good clients as fast as alone, within 20 %",
            passed=rates[1] >= 0.8 * rates[0],
            said=f"{rates[1]:.0f} tokens/s, alone {rates[0]:.0f}",
        ),
        Check(
            name=f"half heads closed within {_HEAD_SECONDS:g} s",
            passed=not late,
            said=f"{len(times) - len(late)} of {len(times)}, slowest {slowest:.1f} s",
        ),
    )
    found = {"alone": figures(alone), "beside": figures(beside), "first_token_p95_seconds": first}
    return Verdict(mode="L9", title="slowloris", checks=checks, figures=found)


async def _storm(bench: Bench) -> tuple[list[float], Sequence[int | str]]:
    """When something was sent, and what came of each request: its number of tokens, or the name of
    what was raised."""
    import openai

    sent: list[float] = []

    async def count(_request: object) -> None:
        sent.append(time.perf_counter())

    target = bench.client.target
    scheme = "https" if target.is_tls else "http"
    http = openai.DefaultAsyncHttpxClient(event_hooks={"request": [count]})
    url = f"{scheme}://{target.host}:{target.port}{target.prefix}/v1"
    async with openai.AsyncOpenAI(
        base_url=url, api_key=target.key or "none", http_client=http
    ) as client:

        async def one(call: Call) -> int | str:
            assert call.document is not None
            fields: dict[str, Any] = dict(call.document)
            fields.setdefault("model", "default")
            try:
                done = await client.completions.create(**fields)
            except openai.OpenAIError as error:
                return type(error).__name__
            return done.usage.completion_tokens if done.usage else 0

        calls = replace(bench.mix, streams=False, is_chat=False).calls()
        wanted = [one(call) for call in islice(calls, bench.scale.storm)]
        return sent, await asyncio.gather(*wanted)


async def _idle_files(bench: Bench) -> int | None:
    """Open files of the server while no connection of ours is kept."""
    bench.client.close()
    await asyncio.sleep(_CLOSING_SECONDS)
    return bench.num_files()


def _dropped(bench: Bench, draw: random.Random, longest: float) -> Iterator[Call]:
    """Requests, streamed and not, each with the moment of its drop."""
    streamed = replace(bench.mix, streams=True).calls()
    whole = replace(bench.mix, streams=False, seed=bench.mix.seed + 1).calls()
    while True:
        call = next(streamed if draw.random() < 0.5 else whole)
        yield replace(call, cancel_after=draw.uniform(0.0, longest))


async def _drop_alone(
    bench: Bench, draw: random.Random, longest: float
) -> tuple[list[float], list[float], float]:
    """Of requests with nobody beside: tokens computed that never arrived, seconds from the drop
    until the slot is free, and the usual seconds of one token."""
    excess: list[float] = []
    freed: list[float] = []
    gaps: list[float] = []
    mix = replace(bench.mix, streams=True)
    calls = (with_scores(call, mix) for call in mix.calls())
    for _ in range(bench.scale.alone_drops):
        before = (await bench.counters()).get("new_tokens")
        if before is None:
            break
        call = replace(next(calls), cancel_after=draw.uniform(0.0, longest))
        outcome = read_reply(await bench.client.send(call))
        waited = await bench.seconds_until_idle(limit=10.0)
        if outcome.arrivals and outcome.scored_tokens:
            tokens = outcome.scored_tokens / len(outcome.arrivals)
            gaps += [gap / tokens for gap in outcome.gaps]
        if outcome.kind != "cancelled" or waited is None:
            continue
        freed.append(waited)
        computed = (await bench.counters())["new_tokens"] - before
        received = outcome.scored_tokens
        excess.append(computed - (len(outcome.arrivals) if received is None else received))
    return excess, freed, percentile(gaps, 50) or 1.0


def _tokens_after_drop(excess: Sequence[float], gap: float) -> Check:
    """One token, besides those that come while the news of the drop is on its way."""
    allowed = 1.0 + _NEWS_SECONDS / gap
    name = f"at most {allowed:.1f} tokens computed after a drop, on average"
    if not excess:
        return Check(name=name, passed=None, said="/metrics does not tell")
    average = sum(excess) / len(excess)
    said = f"{average:.2f}, at most {max(excess):.0f}, of {len(excess)} drops"
    return Check(name=name, passed=average <= allowed, said=said)


def _soaking(bench: Bench, *, seed: int) -> Iterator[Call]:
    draw = random.Random(seed)
    mix = replace(bench.mix, longest=min(bench.scale.longest, _SOAK_LONGEST), seed=seed)
    streamed, whole = mix.calls(), replace(mix, streams=False, seed=seed + 10).calls()
    bad = bad_calls(seed=seed)
    while True:
        lot = draw.random()
        call = next(bad) if lot < 0.2 else next(streamed if lot < 0.6 else whole)
        yield replace(call, cancel_after=draw.uniform(0.0, 0.5)) if lot > 0.9 else call


def _soak_answers(replies: Sequence[Reply]) -> tuple[Check, Check]:
    bad = [reply for reply in replies if reply.call.raw is not None]
    unrefused = Counter(r.status or r.failure for r in bad if not 400 <= r.status < 500)
    slow = percentiles([reply.first_byte - reply.sent for reply in bad if reply.first_byte])
    others = [read_reply(reply) for reply in replies if reply.call.raw is None]
    wrong = Counter(o.kind for o in others if o.kind not in ("ok", "cancelled"))
    num_cancelled = sum(outcome.kind == "cancelled" for outcome in others)
    return (
        Check(
            name="every bad request refused with 4xx",
            passed=bool(bad) and not unrefused,
            said=f"{len(bad)} sent, p99 {slow['p99']} ms" + (f", {unrefused}" if unrefused else ""),
        ),
        Check(
            name="every other one whole or cut off",
            passed=bool(others) and not wrong,
            said=f"{len(others)} sent, {num_cancelled} cut" + (f", {wrong}" if wrong else ""),
        ),
    )


def _slope(samples: Sequence[tuple[int, float]]) -> Check:
    name = f"resident memory grows by less than {_SLOPE_MB:g} MB in 1,000 requests"
    if len(samples) < 3:
        return Check(name=name, passed=None, said="--pid was not given")
    slope = slope_per_thousand(samples)
    said = f"{slope:.3f} MB, from {samples[0][1]:.0f} to {samples[-1][1]:.0f} MB"
    return Check(name=name, passed=slope < _SLOPE_MB, said=said)


def _flat_files(files: Sequence[int]) -> Check:
    name, tenth = "open files stay", max(1, len(files) // 10)
    if not files:
        return Check(name=name, passed=None, said="--pid was not given")
    # Medians: what was just cut off may still be closing when it is counted.
    first, last = median(files[:tenth]), median(files[-tenth:])
    said = f"{first:g} first, {last:g} last, {max(files)} at most"
    return Check(name=name, passed=last <= first + _SPARE_FILES, said=said)


def _files(before: int | None, after: int | None) -> Check:
    if before is None or after is None:
        return Check(name="open files stay", passed=None, said="--pid was not given")
    is_flat = after <= before + _SPARE_FILES
    return Check(name="open files stay", passed=is_flat, said=f"{before} before, {after} after")


def _no_tracebacks(number: int | None) -> Check:
    said = "--log was not given" if number is None else str(number)
    return Check(name="no tracebacks", passed=None if number is None else number == 0, said=said)


async def _half_open(bench: Bench, limit: float) -> float | None:
    """Seconds until the server closes a connection with half a head; None if it does not."""
    target = bench.client.target
    began = time.perf_counter()
    try:
        reader, writer = await asyncio.open_connection(target.host, target.port)
    except OSError:
        return time.perf_counter() - began
    try:
        writer.write(_HALF_A_HEAD)
        async with asyncio.timeout(limit):
            while await reader.read(1024):
                pass
    except TimeoutError:
        return None
    except OSError:
        pass
    finally:
        writer.close()
    return time.perf_counter() - began
