"""Our own models on English books."""

from dataclasses import replace

from bluejay.data.batches import BatchConfig
from bluejay.model.presets import preset
from bluejay.runs.train_run import DataConfig, Intervals, TrainRun
from bluejay.training.optimizer import OptimizerConfig
from bluejay.training.schedule import ScheduleConfig


def bluejay_tiny() -> TrainRun:
    """The model that ships in the package: `bluejay train bluejay-tiny --data DATA`.

    Measured: so many tokens in two runs gave 1.55 bits per byte on the held-out books,
    two thirds as many again in a third 1.53.
    """
    total_steps = 6000
    return TrainRun(
        name="bluejay-tiny",
        model=preset("bluejay-tiny"),
        data=DataConfig(source="books", vocab_size=4096, order="simplest-first"),
        batch=BatchConfig(rows=16, length=256),
        optimizer=OptimizerConfig(
            kind="muon", learning_rate=3e-3, matrix_learning_rate=0.02, b2=0.95, weight_decay=0.0
        ),
        schedule=ScheduleConfig(
            shape="stable", warmup_steps=100, decay_steps=1200, total_steps=total_steps
        ),
        initialization="huggingface",
        products="bfloat16",
        intervals=Intervals(measure_steps=10, evaluate_steps=250, save_steps=100),
    )


def bluejay_small() -> TrainRun:
    """26.7 M parameters for one GPU, in bfloat16: `tools/gpu_training.py` runs it in one call.

    Expected: 25 minutes on one H100 (not run yet, see docs/lab-book.md).
    """
    tiny = bluejay_tiny()
    total_steps = 12_000
    return replace(
        tiny,
        name="bluejay-small",
        model=preset("bluejay-small"),
        data=DataConfig(source="books", vocab_size=8192),
        batch=BatchConfig(rows=64, length=512),
        schedule=replace(
            tiny.schedule, warmup_steps=200, decay_steps=3_000, total_steps=total_steps
        ),
        compute_dtype="bfloat16",
        intervals=Intervals(
            measure_steps=50, evaluate_steps=1_000, save_steps=500, held_out_tokens=262_144
        ),
    )


def bluejay_nano() -> TrainRun:
    """Two small layers for 30 steps on any text: half a minute, to see that training works.

    `bluejay train bluejay-nano --data DIR` on what `bluejay prepare` made with a vocabulary of 512.
    """
    return TrainRun(
        name="bluejay-nano",
        model=preset("gptj-nano"),
        data=DataConfig(source="books", vocab_size=512),
        batch=BatchConfig(rows=8, length=64),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        schedule=ScheduleConfig(
            shape="cosine", warmup_steps=5, decay_steps=25, total_steps=30, final_factor=0.1
        ),
        z_loss=1e-4,
        num_parts=2,
        intervals=Intervals(
            measure_steps=1, evaluate_steps=10, save_steps=5, held_out_tokens=256, sample_tokens=8
        ),
    )
