"""The serving engine against the bare decode loop: what slots, events and other threads cost.

    python benchmarks/engine.py [MODEL] [--requests 1 8 32] [--rounds 5] [--tokens 128]

In each round the engine and then the loop write the same number of texts of so many tokens, drawn
from prompts of 16 random ids. While all of them are being written, rates are taken over every
stretch of 16 tokens a text; given are the median and, because other processes take turns on a
shared machine, the fastest tenth. Prompts are left out. The loop takes 8 steps a call.

`--mix 8 --seconds 30` gives the engine alone the requests of serve_requests.py instead, so many at
a time, as serve.py does over HTTP: tokens a second, prompts included (its `--bare-rate`).
"""

import argparse
import json
import threading
import time
from datetime import date
from typing import Any

import numpy as np
from numpy.typing import NDArray
from serve_requests import Mix

STRETCH, PROMPT = 16, 16
LONGEST, SHARE_OF_CONTEXT = 1024, 0.6  # as serve.py asks
Log = list[tuple[float, int]]  # when so many new ids came


def stretches(log: Log, num_texts: int) -> list[float]:
    """Tokens a second of each stretch."""
    times, totals = (np.array(column) for column in zip(*log, strict=True))
    totals = np.cumsum(totals)
    ends = np.searchsorted(totals, totals + STRETCH * num_texts)
    return [
        float((totals[end] - totals[begin]) / (times[end] - times[begin]))
        for begin, end in enumerate(ends)
        if end < len(times)
    ]


def random_prompts(allowed: NDArray[np.bool_], count: int) -> list[list[int]]:
    choices = np.flatnonzero(allowed)
    return np.random.default_rng(0).choice(choices, (count, PROMPT)).tolist()


def loop_rates(
    runner: Any, allowed: NDArray[np.bool_], prompts: list[list[int]], tokens: int
) -> list[float]:
    """Tokens a second of each stretch of the bare loop, without the prompts."""
    from bluejay.generation.decode_loop import DecodeLoop
    from bluejay.generation.sampling import Sampler
    from bluejay.generation.sampling_params import SamplingParams

    count = len(prompts)
    loop = DecodeLoop(
        runner,
        [runner.start(prompt, reserve=tokens) for prompt in prompts],
        [
            Sampler(SamplingParams(temperature=0.8, seed=number), allowed=allowed)
            for number in range(count)
        ],
        stop_ids=[frozenset()] * count,
        max_tokens=[tokens] * count,
    )
    left, log = tokens * count - sum(map(len, loop.advance(1))), []
    while left:
        num_new = sum(map(len, loop.advance(8)))
        log.append((time.perf_counter(), num_new))
        left -= num_new
    return stretches(log, count)


def bare_rate(runner: Any, allowed: NDArray[np.bool_], count: int, tokens: int) -> float:
    """The median of the stretches of so many texts."""
    return float(np.median(loop_rates(runner, allowed, random_prompts(allowed, count), tokens)))


class Bench:
    """One model in an engine and in a loop."""

    def __init__(self, name: str, *, slots: int, tokens: int) -> None:
        from bluejay import load
        from bluejay.generation.engine import SlotEngine
        from bluejay.generation.engine_requests import EngineLimits

        model = load(name)
        self.allowed, self.tokens, self.tokenizer = model.allowed, tokens, model.tokenizer
        self.runner = model.runner.with_rows(slots)
        context = min(2048, self.runner.config.context_length)
        self.longest = min(LONGEST, int(SHARE_OF_CONTEXT * context))
        self.engine = SlotEngine(
            self.runner,
            allowed=self.allowed,
            limits=EngineLimits(num_slots=slots, context_length=context),
        ).start()
        while not self.engine.status().is_ready:
            time.sleep(0.05)

    def prompts(self, count: int) -> list[list[int]]:
        return random_prompts(self.allowed, count)

    def by_engine(self, count: int) -> list[float]:
        from bluejay.generation.engine_requests import EngineRequest, Failed, Finished, NewTokens
        from bluejay.generation.sampling_params import SamplingParams

        logs: list[Log] = [[] for _ in range(count)]
        ended = threading.Semaphore(0)

        def listen(log: Log, event: object) -> None:
            if isinstance(event, NewTokens):
                log.append((time.perf_counter(), len(event.scores)))
            elif isinstance(event, Finished | Failed):
                ended.release()

        for number, prompt in enumerate(self.prompts(count)):
            sampling = SamplingParams(temperature=0.8, seed=number)
            request = EngineRequest(prompts=[prompt], max_tokens=self.tokens, sampling=sampling)
            log = logs[number]
            self.engine.submit(request, lambda event, log=log: listen(log, event))
        for _ in range(count):
            ended.acquire()
        begin, end = max(log[0][0] for log in logs), min(log[-1][0] for log in logs)
        together = sorted(entry for log in logs for entry in log)
        return stretches([entry for entry in together if begin < entry[0] <= end], count)

    def by_loop(self, count: int) -> list[float]:
        return loop_rates(self.runner, self.allowed, self.prompts(count), self.tokens)


def mixed_rate(bench: Bench, clients: int, seconds: float) -> dict[str, Any]:
    """Tokens a second of the mix, each client's next request when its last one has ended."""
    from bluejay.generation.engine_requests import EngineRequest, Failed, Finished, NewTokens
    from bluejay.generation.sampling_params import SamplingParams

    calls, lock, log = Mix(longest=bench.longest).calls(), threading.Lock(), []
    left, over = threading.Semaphore(0), time.perf_counter() + seconds

    def submit() -> None:
        with lock:
            asked = next(calls).document
        assert asked is not None
        sampling = SamplingParams(temperature=asked["temperature"], seed=asked["seed"])
        prompt = bench.tokenizer.encode(asked["prompt"])
        request = EngineRequest(prompts=[prompt], max_tokens=asked["max_tokens"], sampling=sampling)
        bench.engine.submit(request, listen)

    def listen(event: object) -> None:
        if isinstance(event, NewTokens):
            log.append((time.perf_counter(), len(event.scores)))
        elif isinstance(event, Finished | Failed):
            left.release()

    begin = time.perf_counter()
    for _ in range(clients):
        submit()
    while time.perf_counter() < over:
        left.acquire()
        submit()
    num_tokens = sum(number for moment, number in log if moment <= over)
    return {"clients": clients, "tokens_per_second": round(num_tokens / (over - begin), 1)}


def compared(bench: Bench, count: int, rounds: int) -> dict[str, Any]:
    """Rates of both, by turns; the first round only warms up."""
    rates: dict[str, list[float]] = {"engine": [], "loop": []}
    for number in range(rounds + 1):
        found = {"engine": bench.by_engine(count), "loop": bench.by_loop(count)}
        for name in rates:
            rates[name] += found[name] if number else []
    row: dict[str, Any] = {"requests": count}
    for name, percent in (("median", 50), ("fastest tenth", 90)):
        engine, loop = (np.percentile(rates[who], percent) for who in ("engine", "loop"))
        row[name] = {
            "engine": round(engine, 1),
            "loop": round(loop, 1),
            "ratio": round(engine / loop, 3),
        }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--mix", type=int, help="requests at a time")
    parser.add_argument("--seconds", type=float, default=30.0, help="of --mix")
    given = parser.parse_args()
    if given.mix:
        mixed = Bench(given.model, slots=given.mix, tokens=given.tokens)
        mixed_rate(mixed, given.mix, given.seconds / 5)
        print(json.dumps(mixed_rate(mixed, given.mix, given.seconds)))
        mixed.engine.stop(10)
        return
    bench = Bench(given.model, slots=max(given.requests), tokens=given.tokens)
    print(json.dumps({"model": given.model, "date": date.today().isoformat()}))
    for count in given.requests:
        print(json.dumps(compared(bench, count, given.rounds)), flush=True)
    status = bench.engine.status()
    print(json.dumps({"recompiles": status.recompiles}))
    bench.engine.stop(10)


if __name__ == "__main__":
    main()
