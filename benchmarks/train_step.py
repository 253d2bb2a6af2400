"""Tokens per second of a training step: ours, plain XLA, and torch with the same model.

    python benchmarks/train_step.py --torch-python golden/bin/python [--recipe bluejay-tiny]

Every side is a process of its own, and they take turns, so that a busy neighbour disturbs all. All
train with AdamW and clipping on the same shape: ours with native kernels (operands of products in
float32, and in bfloat16 where the processor has it), ours on XLA alone, torch eager and compiled.
Ours run with large pages, as `bluejay train` does; `--small-pages` leaves them out. MFU is FLOPs
done over FLOPs that a float32 product of 2048 x 2048 matrices reaches in the same process; FLOPs
are 6 per weight of every matrix but the embedding and token, and 12 * layers * width per visible
position.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from bluejay.kernels.library import library
from bluejay.kernels.library_file import VARIABLE
from bluejay.kernels.products import Precision, native_products
from bluejay.model.params import stack_blocks
from bluejay.model.specs import decoder_specs, initialize, parameter_count, stacked_specs
from bluejay.recipes.registry import recipe
from bluejay.runs.doctor import look_at_machine
from bluejay.runs.train_run import TrainRun
from bluejay.training.loss import next_token_loss
from bluejay.training.optimizer import Optimizer, OptimizerConfig
from bluejay.training.step import initial_state, make_step

LARGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
PEER = Path(__file__).with_name("torch_train_step.py")


def shape_of(run: TrainRun) -> dict[str, int]:
    model = run.model
    return {
        "layers": model.num_layers,
        "width": model.embed_dim,
        "heads": model.num_heads,
        "rotary": model.position.rotary_dim,
        "vocabulary": model.vocab_size,
        "rows": run.batch.rows,
        "length": run.batch.length,
    }


def serve(name: str, products: Precision) -> None:
    """One of our sides: as torch_train_step.py, for any recipe."""
    run = recipe(name)
    run = replace(run, optimizer=OptimizerConfig(learning_rate=3e-3, b2=0.95, weight_decay=0.01))
    specs = decoder_specs(run.model)
    optimizer = Optimizer(run.optimizer, run.schedule, stacked_specs(specs))
    params = stack_blocks(initialize(specs, jax.random.key(0)))
    state = initial_state(params, optimizer, seed=0)

    def loss(params: Any, ids: Any, _key: Any) -> Any:
        with native_products(products):
            return next_token_loss(params, ids, None, config=run.model)

    step = make_step(loss, optimizer)
    size = (run.batch.rows, run.batch.length + 1)
    ids = np.random.default_rng(0).integers(0, run.model.vocab_size, size, dtype=np.int32)
    state, metrics = step(state, ids)
    jax.block_until_ready(metrics)
    about = {"version": f"jax {jax.__version__}", "parameters": parameter_count(specs)}
    print(json.dumps(about | {"product": product_rate()}), flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            began = time.perf_counter()
            state, metrics = step(state, ids)
            jax.block_until_ready(metrics)
            times.append(time.perf_counter() - began)
        print(json.dumps(times), flush=True)


def product_rate() -> float:
    x = jnp.ones((2048, 2048), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    rates = []
    for _ in range(9):
        began = time.perf_counter()
        product(x).block_until_ready()
        rates.append(2 * 2048**3 / (time.perf_counter() - began))
    return max(rates)


class Side:
    """One process of the pair."""

    def __init__(self, command: list[str], variables: dict[str, str] | None = None) -> None:
        pipe = subprocess.PIPE
        environment = os.environ | (variables or {})
        self._process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, text=True, env=environment
        )
        self.about = self._read()
        self.times: list[float] = []

    def step(self, count: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        self.times += self._read()

    def _read(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torch-python", default=os.environ.get("BLUEJAY_TORCH_PYTHON"))
    parser.add_argument("--recipe", default="bluejay-tiny")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--small-pages", action="store_true")
    parser.add_argument("--serve", choices=get_args(Precision), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.recipe, given.serve)
        return
    run = recipe(given.recipe)
    sides = our_sides(given.recipe, {} if given.small_pages else LARGE_PAGES)
    if given.torch_python:
        for mode in ("eager", "compiled"):
            command = [given.torch_python, str(PEER), json.dumps(shape_of(run)), mode]
            sides[f"torch, {mode}"] = Side(command)
    for _ in range(given.rounds):
        for side in sides.values():
            side.step(given.steps)
    report(run, sides)


def our_sides(name: str, variables: dict[str, str]) -> dict[str, Side]:
    command = [sys.executable, __file__, "--recipe", name, "--serve"]
    sides = {
        "bluejay, plain XLA": Side([*command, "float32"], variables | {VARIABLE: "off"}),
        "bluejay, float32": Side([*command, "float32"], variables),
    }
    found = library()
    if found is not None and found.has_bfloat16:
        sides["bluejay, bfloat16"] = Side([*command, "bfloat16"], variables)
    return sides


def report(run: TrainRun, sides: dict[str, Side]) -> None:
    machine = look_at_machine()
    print(f"{date.today()}, {machine.processor}, {machine.num_usable_cores} cores")
    print(f"{', '.join(machine.instruction_sets)}; {platform.system()}")
    print(f"{shape_of(run)}\n")
    print("| | version | tokens/s | GFLOP/s | of the product's rate (MFU) | product GFLOP/s |")
    print("|---|---|---:|---:|---:|---:|")
    medians = {name: statistics.median(side.times) for name, side in sides.items()}
    for name, side in sides.items():
        rate = run.batch.tokens / medians[name]
        flops = rate * run.flops_per_token
        product = side.about["product"]
        print(
            f"| {name} | {side.about['version']} | {rate:,.0f} | {flops / 1e9:.0f} | "
            f"{flops / product:.0%} | {product / 1e9:.0f} |"
        )
    counts = {side.about["parameters"] for side in sides.values()}
    assert len(counts) == 1, counts
    plain = medians["bluejay, plain XLA"]
    print("\n" + "; ".join(f"{n}: {plain / m:.2f} x plain XLA" for n, m in medians.items()))
    best = min((m for n, m in medians.items() if n.startswith("torch")), default=None)
    if best is not None:
        print(f"bluejay, float32: {best / medians['bluejay, float32']:.2f} x the better torch")


if __name__ == "__main__":
    main()
