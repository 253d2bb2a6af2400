"""Short runs that decide a recipe: equal arithmetic for each variant, then held-out bits per byte.

    python benchmarks/ladder.py DATA [--tokens 600000] [--only NAME ...] [--root runs/ladder]

DATA is what `bluejay prepare` made for bluejay-tiny. The recipe trains on so many tokens, every
variant on as many as the same floating-point operations pay for, the learning rate falling to zero
over the last fifth: sizes are compared at equal work and not at equal tokens, and what else runs on
the machine changes nothing. Finished variants are not run again; an interrupted ladder goes on
where it was.
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bluejay.model.presets import gptj_config
from bluejay.model.specs import decoder_specs, parameter_count
from bluejay.recipes.bluejay_models import bluejay_tiny
from bluejay.runs.doctor import look_at_machine
from bluejay.runs.run_folder import create_run_folder
from bluejay.runs.train_run import TrainRun
from bluejay.runs.training import Listener, run_training

Variant = Callable[[TrainRun], TrainRun]


def sized(num_layers: int, embed_dim: int, num_heads: int) -> Variant:
    head_dim = embed_dim // num_heads

    def change(run: TrainRun) -> TrainRun:
        config = gptj_config(
            num_layers, embed_dim, num_heads, rotary_dim=head_dim // 2, vocab_size=4096
        )
        return replace(run, model=replace(config, context_length=run.model.context_length))

    return change


def optimized(**values: object) -> Variant:
    return lambda run: replace(run, optimizer=replace(run.optimizer, **values))


def batched(rows: int, length: int, **values: object) -> Variant:
    return lambda run: replace(
        run,
        model=replace(run.model, context_length=length),
        batch=replace(run.batch, rows=rows, length=length, **values),
    )


VARIANTS: dict[str, Variant] = {
    "recipe": lambda run: run,
    "length-128": batched(32, 128),
    "length-512": batched(8, 512),
    "4-layers-of-192": sized(4, 192, 6),
    "4-layers-of-256": sized(4, 256, 8),
    "8-layers-of-192": sized(8, 192, 6),
    "6-layers-of-256": sized(6, 256, 8),
    "half-batch": batched(8, 256),
    "double-batch": batched(32, 256),
    "muon-0.01": optimized(matrix_learning_rate=0.01),
    "muon-0.04": optimized(matrix_learning_rate=0.04),
    "vectors-6e-3": optimized(learning_rate=6e-3),
    "adamw-3e-3": optimized(kind="adamw", learning_rate=3e-3, weight_decay=0.1),
    "adamw-6e-3": optimized(kind="adamw", learning_rate=6e-3, weight_decay=0.1),
    "simple-first": batched(16, 256, shuffle_tokens=1 << 20),
    "2021-init": lambda run: replace(run, initialization="gptj-2021"),
}


def climb(name: str, folder: Path, data: Path, tokens: int) -> dict[str, float]:
    """Train one variant, or go on with it; gives its result."""
    result = folder / "result.json"
    if result.exists():
        found: dict[str, float] = json.loads(result.read_text())
        return found
    run = VARIANTS[name](bluejay_tiny())
    flops = tokens * bluejay_tiny().flops_per_token
    run = ending_after(run, max(20, round(flops / run.flops_per_token / run.batch.tokens)))
    if not (folder / "run.json").exists():
        create_run_folder(folder, run)
    outcome = run_training(run, folder, data, Listener())
    assert outcome.is_finished, f"{name} was interrupted: run the ladder again"
    assert outcome.progress.bits_per_byte is not None
    values = {
        "parameters": parameter_count(decoder_specs(run.model)),
        "tokens": run.total_steps * run.batch.tokens,
        "bits_per_byte": outcome.progress.bits_per_byte,
    }
    result.write_text(json.dumps(values))
    return values


def ending_after(run: TrainRun, steps: int) -> TrainRun:
    schedule = replace(
        run.schedule,
        total_steps=steps,
        warmup_steps=min(100, steps // 10),
        decay_steps=steps // 5,
        final_factor=0.0,
    )
    intervals = replace(run.intervals, evaluate_steps=10_000, save_steps=50)
    return replace(run, schedule=schedule, intervals=intervals)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--tokens", type=int, default=600_000)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--root", type=Path, default=Path("runs/ladder"))
    given = parser.parse_args()
    machine = look_at_machine()
    print(f"{machine.processor}, {machine.num_usable_cores} cores, {time.strftime('%Y-%m-%d')}\n")
    print("| variant | parameters | tokens | held-out bits per byte |")
    print("|---|---:|---:|---:|", flush=True)
    for name in given.only:
        found = climb(name, given.root / name, given.data, given.tokens)
        print(
            f"| {name} | {found['parameters']:,.0f} | {found['tokens']:,.0f} | "
            f"{found['bits_per_byte']:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
