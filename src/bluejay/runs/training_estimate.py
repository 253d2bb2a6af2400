"""What a run needs before it begins: time and memory, from its arithmetic and a short probe."""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from bluejay.core.errors import MemoryLimitError
from bluejay.core.memory import available_bytes
from bluejay.kernels.products import Precision, matmul, native_precision, native_products
from bluejay.model.specs import decoder_specs, parameter_count
from bluejay.runs.doctor import fine_tune_bytes
from bluejay.runs.train_run import TrainRun

# A step reached this share of its products' rate on two cores (docs/lab-book.md, 2026-11-25).
_SHARE_OF_PRODUCT = {None: 0.5, "float32": 0.65, "bfloat16": 0.45}
_PROBE_SIZE = 1024
_PROBE_SECONDS = 0.3


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Seconds of training from the first step to the last, and bytes of memory."""

    seconds: float
    memory: int


def estimate(run: TrainRun) -> Estimate:
    """Takes half a second. Raises MemoryLimitError if the run cannot fit on a CPU's machine."""
    memory = _memory(run)
    if jax.default_backend() == "cpu" and memory > available_bytes():
        raise MemoryLimitError(
            f"The run needs about {memory / 1e9:.1f} GB of memory and {available_bytes() / 1e9:.1f}"
            " GB are free: choose a smaller model, fewer rows, or more parts of a batch."
        )
    flops = run.flops_per_token * run.batch.tokens * run.total_steps
    with native_products(run.products):
        precision = native_precision()
    rate = _SHARE_OF_PRODUCT[precision] * _product_rate(precision)
    return Estimate(seconds=flops / rate, memory=memory)


def _memory(run: TrainRun) -> int:
    rows = run.batch.rows // run.num_parts
    parameters = parameter_count(decoder_specs(run.model))
    one_sequence = fine_tune_bytes(run.model, 0) * run.batch.length // run.model.context_length
    # Every block keeps about 16 widths of activations where nothing is recomputed.
    return fine_tune_bytes(run.model, parameters) + 16 * rows * one_sequence


def _product_rate(precision: Precision | None) -> float:
    """FLOP/s of a matrix product as the run computes it; None is XLA's in float32."""
    x = jnp.ones((_PROBE_SIZE, _PROBE_SIZE), jnp.float32)
    product = jax.jit(lambda a: a @ a if precision is None else matmul(a, a, precision))
    product(x).block_until_ready()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < _PROBE_SECONDS or best == float("inf"):
        start = time.perf_counter()
        product(x).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2.0 * _PROBE_SIZE**3 / best
