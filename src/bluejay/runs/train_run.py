"""The description of a training run: complete, frozen, and JSON both ways."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args

from bluejay.checkpoints.json_file import read_json_object
from bluejay.core.errors import CheckpointError, UsageError
from bluejay.data.batches import BatchConfig
from bluejay.kernels.products import Precision
from bluejay.model.config import DecoderConfig, config_from_json, config_to_json
from bluejay.model.flops import forward_flops_per_token
from bluejay.model.specs import Recipe
from bluejay.training.optimizer import OptimizerConfig
from bluejay.training.schedule import ScheduleConfig

ComputeDtype = Literal["float32", "bfloat16"]
Order = Literal["given", "simplest-first"]
DEFAULT_PROMPTS = ("Once upon a time", "The old man looked at the sea and", '"I do not know," said')


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How text becomes shards: the arguments of `bluejay prepare`.

    `source` is "books" (those of the data folder), or the path of one's own text.
    """

    source: str
    vocab_size: int
    order: Order = "given"
    held_out: float = 0.03

    def __post_init__(self) -> None:
        if self.order not in get_args(Order):
            raise UsageError(f"order is one of {get_args(Order)}, not {self.order!r}.")
        if not 0.0 < self.held_out < 1.0:
            raise UsageError(f"held_out must lie between 0 and 1, not {self.held_out}.")


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """When a run looks up from its steps; counts of steps, tokens and files."""

    measure_steps: int = 10
    evaluate_steps: int = 250
    save_steps: int = 250
    keep_checkpoints: int = 3
    held_out_tokens: int = 65_536
    sample_tokens: int = 60

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 1:
                raise UsageError(f"{name} must be at least 1, not {value}.")


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """Everything that decides what a run computes; the same description gives the same bits.

    `start_from` is a model (name or folder) whose parameters the run begins with; None draws them
    anew. `num_parts` cuts a batch so that its activations fit into memory. Parameters, gradients
    and moments are float32; `compute_dtype` is that of the activations. `products` is what native
    kernels round the operands of float32 products to, where a CPU has such instructions; sums are
    float32 always.
    """

    name: str
    model: DecoderConfig
    data: DataConfig
    batch: BatchConfig
    optimizer: OptimizerConfig
    schedule: ScheduleConfig
    initialization: Recipe = "gptj-2021"
    seed: int = 0
    z_loss: float = 0.0
    num_parts: int = 1
    compute_dtype: ComputeDtype = "float32"
    products: Precision = "float32"
    start_from: str | None = None
    intervals: Intervals = field(default_factory=Intervals)
    prompts: tuple[str, ...] = DEFAULT_PROMPTS

    def __post_init__(self) -> None:
        if self.compute_dtype not in get_args(ComputeDtype):
            raise UsageError(
                f"compute_dtype is one of {get_args(ComputeDtype)}, not {self.compute_dtype!r}."
            )
        if self.products not in get_args(Precision):
            raise UsageError(f"products is one of {get_args(Precision)}, not {self.products!r}.")
        if self.batch.rows % self.num_parts:
            raise UsageError(
                f"A batch of {self.batch.rows} rows does not divide into {self.num_parts} parts."
            )
        if self.batch.length > self.model.context_length:
            raise UsageError(
                f"Windows of {self.batch.length} tokens exceed the model's context of "
                f"{self.model.context_length}: shorten them."
            )
        if self.data.vocab_size > self.model.vocab_size:
            raise UsageError(
                f"A tokenizer of {self.data.vocab_size} ids does not fit into a model of "
                f"{self.model.vocab_size} embedding rows."
            )

    @property
    def total_steps(self) -> int:
        """Steps until the run is finished."""
        return self.schedule.total_steps

    @property
    def flops_per_token(self) -> float:
        """Forward and backward: three times the forward pass, each position seeing on average
        half of the window (no recomputation counted)."""
        visible = (self.batch.length + 1) / 2
        return 3 * forward_flops_per_token(self.model, visible_positions=visible)


def run_to_json(run: TrainRun) -> dict[str, Any]:
    """Plain JSON values, as run.json holds them; readers need total_steps and tokens_per_step."""
    values = asdict(run) | {"model": config_to_json(run.model), "prompts": list(run.prompts)}
    return values | {"total_steps": run.total_steps, "tokens_per_step": run.batch.tokens}


def run_from_json(values: Mapping[str, Any]) -> TrainRun:
    """The inverse of `run_to_json`. Raises UsageError for what is no run description."""
    given = {k: v for k, v in values.items() if k not in ("total_steps", "tokens_per_step")}
    try:
        parts = {
            "model": config_from_json(given["model"]),
            "data": DataConfig(**given["data"]),
            "batch": BatchConfig(**given["batch"]),
            "optimizer": OptimizerConfig(**given["optimizer"]),
            "schedule": ScheduleConfig(**given["schedule"]),
            "intervals": Intervals(**given["intervals"]),
            "prompts": tuple(given["prompts"]),
        }
        return TrainRun(**{**given, **parts})
    except (TypeError, KeyError) as error:
        raise UsageError(f"This is no description of a run: {error}.") from error


def read_run(folder: Path) -> TrainRun:
    """The description in a run's folder. Raises CheckpointError if there is none, or a bad one."""
    path = folder / "run.json"
    if not path.is_file():
        raise CheckpointError(f"{folder} is no run: it has no run.json; `bluejay runs` lists them.")
    try:
        return run_from_json(read_json_object(path))
    except UsageError as error:
        raise CheckpointError(f"{path} cannot be used: {error}") from error


def run_text(run: TrainRun) -> str:
    """The content of run.json."""
    return json.dumps(run_to_json(run), indent=2, ensure_ascii=False) + "\n"


def with_total_steps(run: TrainRun, total_steps: int) -> TrainRun:
    """The same run with another end; warm-up and decay keep their share if they no longer fit."""
    schedule = run.schedule
    share = min(total_steps / schedule.total_steps, 1.0)
    changed = replace(
        schedule,
        total_steps=total_steps,
        warmup_steps=int(schedule.warmup_steps * share),
        decay_steps=int(schedule.decay_steps * share),
    )
    return replace(run, schedule=changed)
