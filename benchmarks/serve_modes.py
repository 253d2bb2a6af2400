"""Modes in which every client behaves: steady, saturated, overloaded, seeded, among neighbours."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean
from typing import Any

from serve_bench import Bench
from serve_http import Call, Reply
from serve_load import Extent, Load, fixed_clients
from serve_replies import Outcome, read_reply
from serve_report import (
    Check,
    Verdict,
    figures,
    first_token_times,
    percentile,
    percentiles,
    token_gaps,
)
from serve_requests import Mix

_REFUSAL_SECONDS = 0.05
_GROWTH_MB = 100
_LONG_ANSWER = 16


async def steady(bench: Bench) -> Verdict:
    """L1: as many streaming clients as slots."""
    load = await bench.load(bench.scale.slots)
    found = figures(load)
    gaps = token_gaps(load.outcomes)
    checks = [no_errors(load.outcomes), _even_gaps(gaps), _against_bare(found, bench.bare_rate)]
    return Verdict(mode="L1", title="steady", checks=tuple(checks), figures=found)


async def saturate(bench: Bench) -> Verdict:
    """L2: four times as many clients as slots; nobody is refused, nobody waits for long."""
    load = await bench.load(bench.scale.saturating)
    found = bench.kept["saturated"] = figures(load)
    waits = first_token_times(load.outcomes)
    longest, average = max(waits, default=0.0), mean(waits) if waits else 0.0
    fair = Check(
        name="longest wait at most twice the mean",
        passed=bool(waits) and longest <= 2 * average,
        said=f"{longest:.3f} s, mean {average:.3f} s",
    )
    checks = (no_errors(load.outcomes), fair)
    return Verdict(mode="L2", title="saturate", checks=checks, figures=found)


async def overload(bench: Bench) -> Verdict:
    """L3: hundreds of clients at once; who is refused waits as long as he is told to.

    The queue is longer here than in L2, so an admitted request waits longer by arithmetic alone;
    what must stay within 20 % of L2 is how fast those that run are served.
    """
    usual, before, over = await bench.saturated(), bench.resident_mb(), asyncio.Event()
    memory = asyncio.ensure_future(bench.largest_resident_mb(over))
    extent = Extent(seconds=bench.scale.seconds, after=_wait_as_told)
    load = await fixed_clients(
        bench.client, bench.mix.calls(), extent, num_clients=bench.scale.flood
    )
    over.set()
    found = figures(load)
    refused = [reply for reply in load.replies if reply.status == 429]
    # 500 replies of one moment wait for this program as well: that is not the server's time.
    times = [reply.arrived - reply.sent for reply in refused]
    found["refusals"] = len(refused)
    found["refusal_ms"] = percentiles(times)
    found["refusal_ms_until_read"] = percentiles([r.first_byte - r.sent for r in refused])
    later = [r.arrived - r.sent for r in refused if r.sent > load.began + 1.0]
    found["refusal_ms_after_the_first_second"] = percentiles(later)
    checks = (
        _only(load.outcomes, "ok", "http 429"),
        Check(
            name="every 429 in 50 ms",
            passed=max(times) < _REFUSAL_SECONDS if times else None,
            said=f"slowest {1000 * max(times):.0f} ms of {len(times)}" if times else "none came",
        ),
        Check(
            name="every 429 says when to come back",
            passed=all("retry-after" in r.headers for r in refused) if refused else None,
            said=f"{sum('retry-after' in r.headers for r in refused)} of {len(refused)}",
        ),
        _within_fifth("tokens/s as in L2", *_rates(found, usual)),
        _within_fifth("p50 between tokens as in L2", *_median_gaps(found, usual)),
        _bounded_memory(before, await memory),
    )
    return Verdict(mode="L3", title="overload", checks=checks, figures=found)


async def determinism(bench: Bench) -> Verdict:
    """L7: the same seeded prompts alone, then among others: the same bytes, the same scores."""
    mix = replace(bench.mix, streams=False)
    number = bench.scale.prompts
    calls = mix.calls()
    chosen = [with_scores(next(calls), mix) for _ in range(number)]
    alone = await _in_order(bench, chosen, at_once=1)
    others = replace(bench.mix, seed=bench.mix.seed + 1).calls()
    extent = Extent(seconds=3600.0)
    crowd = asyncio.ensure_future(
        fixed_clients(bench.client, others, extent, num_clients=bench.scale.saturating)
    )
    crowded = await _in_order(bench, chosen, at_once=4)
    crowd.cancel()
    await asyncio.gather(crowd, return_exceptions=True)
    pairs = list(zip(alone, crowded, strict=True))
    texts = sum(a.text != b.text for a, b in pairs)
    scores = sum(a.logprobs != b.logprobs for a, b in pairs)
    has_scores = all(outcome.logprobs for outcome in alone)
    checks = (
        no_errors(alone + crowded),
        Check(name="same text", passed=texts == 0, said=f"{texts} of {number} differ"),
        Check(
            name="same log probabilities",
            passed=scores == 0 if has_scores else None,
            said=f"{scores} of {number} differ" if has_scores else "the server sends none",
        ),
    )
    return Verdict(mode="L7", title="determinism", checks=checks)


async def isolation(bench: Bench) -> Verdict:
    """L8: the first words of three tenants, alone and beside one who sends long prompts."""
    keys = [*bench.tenant_keys, *[None] * 4][:4]
    others, heavy = keys[:3], keys[3]
    seconds = bench.scale.seconds / 2
    alone = await _tenants(bench, others, seconds)
    long_mix = replace(bench.mix, seed=99, max_tokens=_LONG_ANSWER, longest=10**6)
    long_mix = replace(long_mix, prompt_tokens=bench.scale.long_prompt)
    long_calls = (replace(call, key=heavy) for call in long_mix.calls())
    extent = Extent(seconds=seconds)
    beside, long_load = await asyncio.gather(
        _tenants(bench, others, seconds),
        fixed_clients(bench.client, long_calls, extent, num_clients=2),
    )
    first = [percentile(first_token_times(load.outcomes), 95) for load in (alone, beside)]
    checks = (
        no_errors([*alone.outcomes, *beside.outcomes, *long_load.outcomes]),
        _at_most_twice(first[0], first[1]),
    )
    found: dict[str, Any] = {"alone": figures(alone), "beside": figures(beside)}
    found["long"] = figures(long_load)
    found["keys"] = len(set(filter(None, keys)))
    return Verdict(mode="L8", title="isolation", checks=checks, figures=found)


def no_errors(outcomes: Sequence[Outcome]) -> Check:
    """Every answer whole, streams with their [DONE]; and that there were any."""
    wrong = [outcome.kind for outcome in outcomes if not outcome.is_ok]
    said = f"{len(outcomes)} requests, {len(wrong)} errors"
    kinds = ", ".join(sorted(set(wrong)))
    return Check(
        name="no errors, all ended in [DONE]",
        passed=bool(outcomes) and not wrong,
        said=f"{said}: {kinds}" if wrong else said,
    )


async def _tenants(bench: Bench, keys: Sequence[str | None], seconds: float) -> Load:
    """One client for each key, all in one load."""
    mixes = [replace(bench.mix, seed=number).calls() for number in range(len(keys))]
    calls = (
        replace(next(mixes[number % len(keys)]), key=keys[number % len(keys)])
        for number in range(10**9)
    )
    extent = Extent(seconds=seconds, warm_up=len(keys))
    return await fixed_clients(bench.client, calls, extent, num_clients=len(keys))


async def _in_order(bench: Bench, calls: Sequence[Call], *, at_once: int) -> list[Outcome]:
    """The outcomes of these requests, in their order."""
    gate = asyncio.Semaphore(at_once)

    async def one(call: Call) -> Outcome:
        async with gate:
            return read_reply(await bench.client.send(call))

    return list(await asyncio.gather(*(one(call) for call in calls)))


def _at_most_twice(alone: float | None, beside: float | None) -> Check:
    name = "p95 to the first token at most twice as long"
    if alone is None or beside is None:
        return Check(name=name, passed=False, said="no first token came")
    said = f"{1000 * beside:.0f} ms beside, {1000 * alone:.0f} ms alone"
    return Check(name=name, passed=beside <= 2 * alone, said=said)


def with_scores(call: Call, mix: Mix) -> Call:
    """The request, asking for the log probability of every token as well."""
    assert call.document is not None
    more: dict[str, Any] = {"logprobs": True, "top_logprobs": 1} if mix.is_chat else {"logprobs": 1}
    return replace(call, document={**call.document, **more})


def _even_gaps(gaps: Sequence[float]) -> Check:
    half, tail = percentile(gaps, 50), percentile(gaps, 99)
    if half is None or tail is None:
        return Check(name="even gaps", passed=False, said="no two tokens came apart")
    return Check(
        name="p99 between tokens at most 3 times p50",
        passed=tail <= 3 * half,
        said=f"{1000 * tail:.2f} ms, p50 {1000 * half:.2f} ms",
    )


def _against_bare(found: dict[str, Any], bare_rate: float | None) -> Check:
    name, rate = "tokens/s at least 90 % of the bare engine's", found["output_tokens_per_second"]
    if bare_rate is None:
        return Check(name=name, passed=None, said=f"{rate:.0f}; --bare-rate was not given")
    share = rate / bare_rate
    return Check(name=name, passed=share >= 0.9, said=f"{rate:.0f} of {bare_rate:.0f}, {share:.0%}")


def _only(outcomes: Sequence[Outcome], *kinds: str) -> Check:
    others = sorted({outcome.kind for outcome in outcomes} - set(kinds))
    return Check(
        name=f"only {' or '.join(kinds)}",
        passed=bool(outcomes) and not others,
        said=", ".join(others) or f"{len(outcomes)} answers",
    )


def _rates(found: dict[str, Any], usual: dict[str, Any]) -> tuple[float, float]:
    return found["output_tokens_per_second"], usual["output_tokens_per_second"]


def _median_gaps(found: dict[str, Any], usual: dict[str, Any]) -> tuple[float | None, float | None]:
    return found["between_tokens_ms"]["p50"], usual["between_tokens_ms"]["p50"]


def _within_fifth(name: str, value: float | None, usual: float | None) -> Check:
    if not value or not usual:
        return Check(name=name, passed=None, said="nothing was streamed")
    said = f"{value:.3g}, usually {usual:.3g}"
    return Check(name=f"{name}, within 20 %", passed=0.8 <= value / usual <= 1.25, said=said)


def _bounded_memory(before: float | None, largest: float | None) -> Check:
    name = f"resident memory grows by at most {_GROWTH_MB} MB"
    if before is None or largest is None:
        return Check(name=name, passed=None, said="--pid was not given")
    said = f"{before:.0f} MB before, at most {largest:.0f} MB"
    return Check(name=name, passed=largest - before <= _GROWTH_MB, said=said)


def _wait_as_told(reply: Reply) -> float:
    """As long as a refusal asks for; a moment if it does not say."""
    if reply.status != 429:
        return 0.1 if reply.failure else 0.0
    return float(reply.headers.get("retry-after", 0.1))
