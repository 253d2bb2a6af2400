"""Tokens per second of a training step: ours against torch with the same model.

    python benchmarks/train_step.py --torch-python golden/bin/python [--recipe bluejay-tiny]

The two processes take turns, so that a busy neighbour disturbs both. Both train with AdamW and
clipping in float32 on the same shape. MFU is FLOPs done over FLOPs that a float32 product of
2048 x 2048 matrices reaches in the same process; FLOPs are 6 per weight of every matrix but the
embedding and token, and 12 * layers * width per visible position.
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

import jax
import jax.numpy as jnp
import numpy as np

from bluejay.model.params import stack_blocks
from bluejay.model.specs import decoder_specs, initialize, parameter_count, stacked_specs
from bluejay.recipes.registry import recipe
from bluejay.runs.doctor import look_at_machine
from bluejay.runs.train_run import TrainRun
from bluejay.training.loss import next_token_loss
from bluejay.training.optimizer import Optimizer, OptimizerConfig
from bluejay.training.step import initial_state, make_step

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


def serve(name: str) -> None:
    """Our side of the pair: as torch_train_step.py, for any recipe."""
    run = recipe(name)
    run = replace(run, optimizer=OptimizerConfig(learning_rate=3e-3, b2=0.95, weight_decay=0.01))
    specs = decoder_specs(run.model)
    optimizer = Optimizer(run.optimizer, run.schedule, stacked_specs(specs))
    params = stack_blocks(initialize(specs, jax.random.key(0)))
    state = initial_state(params, optimizer, seed=0)
    step = make_step(lambda p, ids, _: next_token_loss(p, ids, None, config=run.model), optimizer)
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

    def __init__(self, command: list[str]) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)
        self.about = self._read()
        self.times: list[float] = []

    def step(self, count: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{count}\n")
        self._process.stdin.flush()
        self.times += self._read()

    def _read(self):  # type: ignore[no-untyped-def]
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--torch-python", default=os.environ.get("BLUEJAY_TORCH_PYTHON"))
    parser.add_argument("--recipe", default="bluejay-tiny")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.recipe)
        return
    run = recipe(given.recipe)
    sides = {"bluejay": Side([sys.executable, __file__, "--serve", "--recipe", given.recipe])}
    if given.torch_python:
        sides["torch"] = Side([given.torch_python, str(PEER), json.dumps(shape_of(run))])
    for _ in range(given.rounds):
        for side in sides.values():
            side.step(given.steps)
    report(run, sides)


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
    if "torch" in medians:
        assert sides["torch"].about["parameters"] == sides["bluejay"].about["parameters"]
        print(f"\nbluejay / torch: {medians['torch'] / medians['bluejay']:.2f} times the tokens/s")


if __name__ == "__main__":
    main()
