"""Measure a model as it is used: loading, prompts, and decoding through the loop of `generate`.

Every program is compiled before the first reading, and readings go in rounds: what disturbs the
machine for a moment disturbs one round of every case, and medians leave it out.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Final

import jax
import numpy as np

import bluejay
from bluejay.core.memory import PeakAnonymous, peak_resident_bytes, process_seconds
from bluejay.generation.decode_loop import DecodeLoop
from bluejay.generation.runner import Prefix
from bluejay.generation.sampling import Sampler
from bluejay.generation.sampling_params import SamplingParams
from bluejay.generation.speculation import Pace
from bluejay.kernels.library import cpu_library, library_status
from bluejay.kernels.threads import usable_cores
from bluejay.runs.bench_plan import BenchPlan, DecodeCase
from bluejay.runs.bench_report import BenchReport, DecodeReading, PrefillReading, Setting, Start
from bluejay.runs.decode_costs import (
    cache_bytes_per_position,
    predicted_step_seconds,
    stored_weights,
)
from bluejay.runs.language_model import LanguageModel
from bluejay.runs.read_bandwidth import Yardstick, yardstick

FIRST_PROMPT = 16
GREEDY: Final = SamplingParams(temperature=0.0)
SAMPLING: Final = SamplingParams(temperature=0.8, top_p=0.95)
# A case that has taken so long is not repeated.
_MOST_SECONDS = 20.0

OnStage = Callable[[str, str], None]
"""Called with what goes on, and with the case that it is at."""


def measure(
    model: LanguageModel, plan: BenchPlan, *, name: str, load_seconds: float, on_stage: OnStage
) -> BenchReport:
    """All readings of a loaded model. The plan has to fit its context (`BenchPlan.fitted`)."""
    return _Bench(model, plan, on_stage).report(name, load_seconds)


@dataclass(kw_only=True)
class _Times:
    """Readings of one case: seconds, and of them those inside of kernels."""

    seconds: list[float] = field(default_factory=list)
    kernels: list[float] = field(default_factory=list)

    @property
    def is_enough(self) -> bool:
        return sum(self.seconds) > _MOST_SECONDS


class _Bench:
    def __init__(self, model: LanguageModel, plan: BenchPlan, on_stage: OnStage) -> None:
        self._plan, self._on_stage = plan, on_stage
        self._params, self._config = model.runner.params, model.config
        self._cache_dtype = model.runner.cache_dtype
        self._runner = model.runner
        # As `load` makes it, but for as many rows as are asked for; native kernels take any number
        # of them, XLA as many as a program is compiled for.
        most = max(plan.batches)
        rows = {n: most if self._runner.is_native else n for n in plan.batches}
        self._runners = {n: model.runner.with_rows(count) for n, count in rows.items()}
        self._library = cpu_library()
        self._random = np.random.default_rng(0)
        self._prefixes: dict[int, Prefix] = {}
        self._decode = {case: _Times() for case in plan.decode_cases()}
        self._prefill = {prompt: _Times() for prompt in plan.prompts}
        self._bandwidths: list[float] = []

    def report(self, name: str, load_seconds: float) -> BenchReport:
        """Warm up, measure, and put everything together."""
        self._on_stage("Warming up", "the first token")
        with PeakAnonymous() as anonymous:
            np.asarray(self._runner.start(self._ids(FIRST_PROMPT)).logits)
            first_token = process_seconds()
            self._warm_up()
        start = Start(
            load_seconds=load_seconds,
            first_token_seconds=first_token,
            peak_resident=peak_resident_bytes(),
            peak_anonymous=anonymous.peak,
        )
        limit = yardstick()  # not before: its memory is not the model's
        for number in range(1, self._plan.repeat + 1):
            self._measure_round(f"Measuring, round {number} of {self._plan.repeat}", limit)
        return self._joined(name, start)

    def _ids(self, count: int) -> list[int]:
        ids: list[int] = self._random.integers(0, self._config.vocab_size, count).tolist()
        return ids

    def _warm_up(self) -> None:
        """Compile, and fill the contexts."""
        for prompt in self._prefill:
            self._on_stage("Warming up", f"prompts of {prompt}")
            self._runner.warm_up(prompt)
        for case in self._decode:
            self._on_stage("Warming up", case_words(case))
            if case.prompt not in self._prefixes:
                ids = self._ids(case.prompt)
                self._prefixes[case.prompt] = self._runner.start(ids, reserve=self._reserve)
            loop = self._loop(case)
            loop.advance(1)
            loop.advance(1)

    @property
    def _reserve(self) -> int:
        return self._plan.tokens + 1  # the first choice is the prompt's

    def _loop(self, case: DecodeCase) -> DecodeLoop:
        prefix = self._prefixes[case.prompt]
        # A row that is alone takes over the arrays of its prefix.
        first = self._runner.copy(prefix) if case.batch == 1 else prefix
        params = GREEDY if case.is_greedy else SAMPLING
        allowed = np.ones(self._config.vocab_size, np.bool_)
        return DecodeLoop(
            self._runners[case.batch],
            [first, *[prefix] * (case.batch - 1)],
            [Sampler(params, allowed=allowed, sample_index=i) for i in range(case.batch)],
            stop_ids=[frozenset()] * case.batch,
            max_tokens=[self._reserve] * case.batch,
        )

    def _measure_round(self, stage: str, limit: Yardstick | None) -> None:
        self._read_bandwidth(limit)
        for prompt, times in self._prefill.items():
            self._on_stage(stage, f"prompts of {prompt}")
            if not times.is_enough:
                self._time_prefill(prompt, times)
        self._read_bandwidth(limit)
        for case, times in self._decode.items():
            self._on_stage(stage, case_words(case))
            if not times.is_enough:
                self._time_decode(case, times)
        self._read_bandwidth(limit)

    def _read_bandwidth(self, limit: Yardstick | None) -> None:
        if limit is not None:
            self._bandwidths.append(limit.bytes_per_second())

    def _time_prefill(self, prompt: int, times: _Times) -> None:
        ids = self._ids(prompt)
        begun = time.perf_counter()
        jax.block_until_ready(self._runner.start(ids).logits)
        times.seconds.append(time.perf_counter() - begun)

    def _time_decode(self, case: DecodeCase, times: _Times) -> None:
        loop = self._loop(case)
        loop.advance(1)
        left, pace = self._plan.tokens, Pace()
        inside, begun = self._kernel_seconds(), time.perf_counter()
        while left:
            resumed = time.perf_counter()
            made = len(loop.advance(min(pace.num_steps, left))[0])
            pace.observe(time.perf_counter() - resumed, made)
            left -= made
        times.seconds.append(time.perf_counter() - begun)
        times.kernels.append(self._kernel_seconds() - inside)

    def _kernel_seconds(self) -> float:
        return 0.0 if self._library is None else self._library.decoding_seconds

    def _joined(self, name: str, start: Start) -> BenchReport:
        readings = [self._reading(case) for case in self._decode]
        bandwidth = median(self._bandwidths) if self._bandwidths else None
        return BenchReport(
            setting=self._setting(name),
            start=start,
            decode=tuple(reading for reading in readings if reading.case.is_greedy),
            sampled=readings[-1],
            prefill=tuple(
                PrefillReading(prompt=prompt, seconds=median(times.seconds))
                for prompt, times in self._prefill.items()
            ),
            bandwidth=bandwidth,
            predicted_seconds=None if bandwidth is None else self._predicted(bandwidth),
        )

    def _setting(self, name: str) -> Setting:
        library = self._library
        return Setting(
            model=name,
            version=bluejay.__version__,
            kernels=library_status(),
            threads=usable_cores() if library is None else library.num_threads,
            cache_dtype=self._cache_dtype,
            tokens=self._plan.tokens,
            repeat=self._plan.repeat,
        )

    def _reading(self, case: DecodeCase) -> DecodeReading:
        times, steps = self._decode[case], self._plan.tokens
        weights = sum(stored_weights(self._params).read.values())
        return DecodeReading(
            case=case,
            seconds=median(times.seconds) / steps,
            kernel_seconds=None if self._library is None else median(times.kernels) / steps,
            num_bytes=weights + case.batch * self._cached(case.prompt),
        )

    def _cached(self, prompt: int) -> int:
        """Bytes of one row's keys and values, halfway through the new tokens."""
        per_position = cache_bytes_per_position(self._config, self._cache_dtype)
        return per_position * (prompt + self._plan.tokens // 2)

    def _predicted(self, bandwidth: float) -> float:
        return predicted_step_seconds(
            stored_weights(self._params),
            self._config,
            bandwidth=bandwidth,
            cached=self._cached(next(iter(self._decode)).prompt),
        )


def case_words(case: DecodeCase) -> str:
    """A case for people."""
    rows = "1 row" if case.batch == 1 else f"{case.batch} rows"
    behind = f" behind {case.context:,} tokens" if case.context else ""
    return f"{rows}{behind}{'' if case.is_greedy else ', drawn'}"
