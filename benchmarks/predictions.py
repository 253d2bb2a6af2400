"""How well `bluejay doctor` predicts decoding: models as they are against the prediction.

    python benchmarks/predictions.py MODEL [MODEL ...] [--seconds 10] [--cache-dtype float16]

Per model, one row, greedy, at the beginning of a text: the median of many short calls of the decode
loop, and of readings of memory in between. Both have to be of the same machine at the same time: a
virtual one's bandwidth moves by a factor of two, and the largest of each come from different
moments. Beside other processes neither means much. The last columns say where the time went: inside
of kernels, and outside of them per id of the vocabulary; and what the kernels' time leaves for a
layer after all bytes were read at the shares of `bluejay.runs.decode_costs`.
"""

import argparse
import time
from dataclasses import dataclass
from datetime import date
from statistics import median

import jax
import numpy as np

import bluejay
from bluejay.generation.decode_loop import DecodeLoop
from bluejay.generation.sampling import Sampler
from bluejay.generation.sampling_params import SamplingParams
from bluejay.kernels.library import Library, cpu_library
from bluejay.runs.decode_costs import (
    SHARE_OF_BANDWIDTH,
    Weights,
    cache_bytes_per_position,
    predicted_step_seconds,
    stored_weights,
)
from bluejay.runs.doctor import look_at_machine
from bluejay.runs.language_model import LanguageModel
from bluejay.runs.read_bandwidth import SHORT_YARDSTICK_BYTES, Yardstick

STEPS_PER_CALL = 4
CALLS_PER_LOOP = 16


@dataclass(frozen=True, kw_only=True)
class Typical:
    """Medians: seconds of a step, those inside of kernels, and bytes per second."""

    step: float
    kernels: float
    bandwidth: float


def typical(model: LanguageModel, library: Library, seconds: float) -> Typical:
    limit = Yardstick(library, SHORT_YARDSTICK_BYTES)
    runner, tokens = model.runner, 1 + STEPS_PER_CALL * CALLS_PER_LOOP
    allowed = np.ones(model.config.vocab_size, np.bool_)
    steps, kernels, bandwidths = [], [], []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        sampler = Sampler(SamplingParams(temperature=0.0), allowed=allowed)
        prefix = runner.start([1], reserve=tokens)
        loop = DecodeLoop(runner, [prefix], [sampler], stop_ids=[frozenset()], max_tokens=[tokens])
        loop.advance(1)
        loop.advance(STEPS_PER_CALL)  # compiles, the first time
        for _ in range(CALLS_PER_LOOP - 1):
            inside, begun = library.decoding_seconds, time.perf_counter()
            loop.advance(STEPS_PER_CALL)
            steps.append((time.perf_counter() - begun) / STEPS_PER_CALL)
            kernels.append((library.decoding_seconds - inside) / STEPS_PER_CALL)
        bandwidths.append(limit.bytes_per_second())
    return Typical(step=median(steps), kernels=median(kernels), bandwidth=median(bandwidths))


def row(name: str, model: LanguageModel, weights: Weights, found: Typical) -> str:
    config = model.config
    positions = STEPS_PER_CALL * CALLS_PER_LOOP // 2
    cached = positions * cache_bytes_per_position(config, model.runner.cache_dtype)
    predicted = predicted_step_seconds(weights, config, bandwidth=found.bandwidth, cached=cached)
    reading = sum(n / SHARE_OF_BANDWIDTH[kind] for kind, n in weights.read.items())
    layer = (found.kernels - reading / found.bandwidth) / config.num_layers
    per_id = (found.step - found.kernels) / config.vocab_size
    cells = [
        f"{sum(weights.read.values()) / 1e6:.0f}",
        f"{found.bandwidth / 1e9:.1f}",
        f"{1e3 * found.step:.2f}",
        f"{1 / found.step:.1f}",
        f"{1 / predicted:.1f}",
        f"{found.step / predicted - 1:+.0%}",
        f"{1e3 * found.kernels:.2f}",
        f"{1e9 * per_id:.1f}",
        f"{1e6 * layer:.0f}",
    ]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--cache-dtype")
    given = parser.parse_args()
    library = cpu_library()
    if library is None:
        raise SystemExit("The prediction is about native kernels, and there are none.")
    print(
        "| model | MB a token | GB/s | ms a step | tokens/s | predicted | prediction is high by | "
        "ms in kernels | ns an id | us a layer |"
    )
    print("|---|" + "---:|" * 9)
    for name in given.models:
        model = bluejay.load(name, cache_dtype=given.cache_dtype)
        weights = stored_weights(model.runner.params)
        jax.block_until_ready(model.runner.params)
        print(row(name, model, weights, typical(model, library, given.seconds)), flush=True)
    machine = look_at_machine()
    print(f"\n{machine.processor}, {machine.kernels}; {date.today()}")


if __name__ == "__main__":
    main()
