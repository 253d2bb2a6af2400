"""What one choice costs, from logits on the device to a Python value: medians in milliseconds.

A decode step of a 135 M model takes about 25 ms on two cores, so 1 ms is 4 % of it.
"""

import time
from statistics import median
from typing import Any

import jax
import numpy as np

from bluejay.generation.sampling import Sampler, SamplingParams

VOCABULARY = 50400
REPEATS = 200
CASES: dict[str, dict[str, float]] = {
    "greedy": {"temperature": 0},
    "temperature 0.8": {"temperature": 0.8},
    "top-k 50": {"top_k": 50},
    "top-k 5000": {"top_k": 5000},
    "top-p 0.9": {"top_p": 0.9},
    "min-p 0.05": {"min_p": 0.05},
    "typical 0.9": {"typical_p": 0.9},
    "temperature, top-k 50, top-p 0.9": {"temperature": 0.8, "top_k": 50, "top_p": 0.9},
    "three penalties": {
        "repetition_penalty": 1.1,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.5,
    },
}
# Normal logits of this spread: at 1 nearly every id matters, at 4 about a hundred do.
SPREADS = (1.0, 4.0)


def measure(values: dict[str, Any], spread: float, num_alternatives: int) -> float:
    """Median time of `choose`, the compiling call left out."""
    normal = np.random.default_rng(0).standard_normal(VOCABULARY)
    logits = jax.device_put((normal * spread).astype(np.float32))
    sampler = Sampler(
        SamplingParams(**values),
        allowed=np.arange(VOCABULARY) < 50257,
        num_alternatives=num_alternatives,
    )
    sampler.choose(logits)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        sampler.choose(logits)
        times.append(time.perf_counter() - start)
    return median(times) * 1000


def main() -> None:
    print(f"{'choice among 50,400 ids, ms':36}", *(f"spread {s:g}" for s in SPREADS))
    for name, values in CASES.items():
        row = [measure(values, spread, 0) for spread in SPREADS]
        print(f"{name:36}", *(f"{value:8.2f}" for value in row))
    row = [measure({"temperature": 0.8}, spread, 5) for spread in SPREADS]
    print(f"{'temperature 0.8, 5 alternatives':36}", *(f"{value:8.2f}" for value in row))


if __name__ == "__main__":
    main()
