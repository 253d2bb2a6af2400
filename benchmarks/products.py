"""GFLOP/s of matrix products: ours on every instruction set of this processor, and XLA's.

    python benchmarks/products.py [--rounds 9]

Shapes are those of a training step of bluejay-tiny, forward and backward. All take turns in one
process; medians. Ours in bfloat16 rounds float32 operands on the way, that time included.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from datetime import date

import jax
import jax.numpy as jnp

from bluejay.kernels.library import INSTRUCTION_SETS, library
from bluejay.kernels.products import matmul
from bluejay.runs.doctor import look_at_machine

ROWS = 4096
SHAPES = ((ROWS, 1568, 224), (ROWS, 224, 1120), (ROWS, 4096, 224), (224, 1568, ROWS))


def plain(left: jax.Array, right: jax.Array) -> jax.Array:
    axes = (((1,), (1,)), ((), ()))
    return jax.lax.dot_general(left, right, axes, precision=jax.lax.Precision.HIGHEST)


def contenders() -> dict[str, tuple[str | None, Callable[..., jax.Array]]]:
    """Name -> (instruction set to force, product)."""
    found: dict[str, tuple[str | None, Callable[..., jax.Array]]] = {"XLA": (None, jax.jit(plain))}
    native = library()
    assert native is not None, "the native library was not built"
    best = native.instruction_set
    for name in INSTRUCTION_SETS:
        if not native.force(name):
            continue
        for precision in ("float32", "bfloat16")[: 1 + native.has_bfloat16]:
            product = jax.jit(lambda a, b, p=precision: matmul(a, b, p))
            found[f"{name}, {precision}"] = (name, product)
    native.force(best)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=9)
    given = parser.parse_args()
    native = library()
    assert native is not None
    sides = contenders()
    times: dict[str, dict[tuple[int, int, int], list[float]]] = {name: {} for name in sides}
    for shape in SHAPES:
        rows, columns, depth = shape
        left, right = jnp.ones((rows, depth)), jnp.ones((columns, depth))
        for number in range(given.rounds + 1):
            for name, (instruction_set, product) in sides.items():
                if instruction_set is not None:
                    native.force(instruction_set)
                began = time.perf_counter()
                product(left, right).block_until_ready()
                if number > 0:  # the first compiles
                    times[name].setdefault(shape, []).append(time.perf_counter() - began)
    machine = look_at_machine()
    print(f"{date.today()}, {machine.processor}, {machine.num_usable_cores} cores")
    print(f"{', '.join(machine.instruction_sets)}\n")
    print("| GFLOP/s | " + " | ".join(" x ".join(map(str, shape)) for shape in SHAPES) + " |")
    print("|---|" + "---:|" * len(SHAPES))
    for name, by_shape in times.items():
        rates = [
            2 * rows * columns * depth / statistics.median(by_shape[rows, columns, depth]) / 1e9
            for rows, columns, depth in SHAPES
        ]
        print(f"| {name} | " + " | ".join(f"{rate:.0f}" for rate in rates) + " |")


if __name__ == "__main__":
    main()
