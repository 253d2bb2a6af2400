"""Short runs that decide a recipe: the same minutes for each variant, then held-out bits per byte.

    python benchmarks/ladder.py DATA [--minutes 5] [--only NAME ...] [--root runs/ladder]

DATA is what `bluejay prepare` made for bluejay-tiny. Every variant trains for so many steps as fit
into the minutes at its own measured rate, its learning rate falling to zero over the last fifth,
so that sizes and optimizers are compared at equal time and not at equal tokens. Finished variants
are not run again; an interrupted ladder goes on where it was. Nothing else may run meanwhile.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bluejay.model.presets import gptj_config
from bluejay.model.specs import decoder_specs, parameter_count
from bluejay.recipes.bluejay_models import bluejay_tiny
from bluejay.runs.doctor import look_at_machine
from bluejay.runs.run_folder import create_run_folder, write_run
from bluejay.runs.train_run import TrainRun
from bluejay.runs.training import Listener, run_training

Variant = Callable[[TrainRun], TrainRun]
RATE_STEPS = 12


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
    "adamw-3e-3": optimized(kind="adamw", learning_rate=3e-3, weight_decay=0.1),
    "adamw-6e-3": optimized(kind="adamw", learning_rate=6e-3, weight_decay=0.1),
    "muon-0.01": optimized(matrix_learning_rate=0.01),
    "muon-0.04": optimized(matrix_learning_rate=0.04),
    "vectors-6e-3": optimized(learning_rate=6e-3),
    "4-layers-of-256": sized(4, 256, 4),
    "6-layers-of-256": sized(6, 256, 4),
    "8-layers-of-192": sized(8, 192, 6),
    "length-128": batched(32, 128),
    "length-512": batched(8, 512),
    "half-batch": batched(8, 256),
    "simple-first": batched(16, 256, shuffle_tokens=1 << 20),
    "2021-init": lambda run: replace(run, initialization="gptj-2021"),
}


def climb(name: str, folder: Path, data: Path, minutes: float) -> dict[str, float]:
    """Train one variant, or go on with it; gives its result."""
    result = folder / "result.json"
    if result.exists():
        found: dict[str, float] = json.loads(result.read_text())
        return found
    run = VARIANTS[name](bluejay_tiny())
    seconds_per_step = measured(run, folder.with_name(f"{name}-rate"), data)
    steps = max(20, math.floor(60 * minutes / seconds_per_step))
    run = ending_after(run, steps)
    if not (folder / "run.json").exists():
        create_run_folder(folder, run)
    outcome = run_training(run, folder, data, Listener())
    assert outcome.is_finished, f"{name} was interrupted: run the ladder again"
    assert outcome.progress.bits_per_byte is not None
    values = {
        "parameters": parameter_count(decoder_specs(run.model)),
        "tokens": steps * run.batch.tokens,
        "tokens_per_second": run.batch.tokens / seconds_per_step,
        "bits_per_byte": outcome.progress.bits_per_byte,
    }
    result.write_text(json.dumps(values))
    return values


def measured(run: TrainRun, folder: Path, data: Path) -> float:
    """Seconds of a step: the fastest of some, by the run's own measurements."""
    run = ending_after(run, RATE_STEPS)
    run = replace(run, intervals=replace(run.intervals, measure_steps=1, held_out_tokens=4096))
    if not (folder / "run.json").exists():
        create_run_folder(folder, run)
    write_run(folder, run)
    run_training(run, folder, data, Listener())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return run.batch.tokens / max(m["tokens_per_second"] for m in lines if m["kind"] == "train")


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
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--root", type=Path, default=Path("runs/ladder"))
    given = parser.parse_args()
    machine = look_at_machine()
    print(f"{machine.processor}, {machine.num_usable_cores} cores, {time.strftime('%Y-%m-%d')}\n")
    print("| variant | parameters | tokens | tokens/s | held-out bits per byte |")
    print("|---|---:|---:|---:|---:|", flush=True)
    for name in given.only:
        found = climb(name, given.root / name, given.data, given.minutes)
        print(
            f"| {name} | {found['parameters']:,.0f} | {found['tokens']:,.0f} | "
            f"{found['tokens_per_second']:,.0f} | {found['bits_per_byte']:.4f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
