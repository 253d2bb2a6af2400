"""One's own text: the tiny recipe cut to what there is."""

from dataclasses import replace
from pathlib import Path

from bluejay.checkpoints.locate import locate
from bluejay.checkpoints.model_files import open_model
from bluejay.core.errors import DataError
from bluejay.data.batches import BatchConfig
from bluejay.model.config import DecoderConfig
from bluejay.model.presets import gptj_config
from bluejay.runs.train_run import DataConfig, Intervals, TrainRun
from bluejay.shards.reader import TokenShards
from bluejay.training.optimizer import OptimizerConfig
from bluejay.training.schedule import ScheduleConfig

OWN_TEXT = DataConfig(source="own", vocab_size=2048, held_out=0.1)
# Rows of the embedding come in multiples of this, as GPT-J's do of 8.
_ROW_MULTIPLE = 64
_EPOCHS = 8
_FEWEST_STEPS, _MOST_STEPS = 60, 1500
_SHORTEST = 16


def own_text(name: str, data: Path) -> TrainRun:
    """From scratch on prepared text: `bluejay train my.txt`.

    A GPT-J of 4 layers and width 256 sees the text about 8 times, in 60 to 1,500 steps of 16 x 256
    tokens: 3 to 60 minutes on two cores. It learns the spelling and the phrases of the text, and
    little sense; `--from bluejay-tiny` begins with a model that knows English.
    """
    shards = TokenShards(data / "train")
    vocab_size = -(-shards.manifest.vocab_size // _ROW_MULTIPLE) * _ROW_MULTIPLE
    config = replace(
        gptj_config(4, 256, 4, rotary_dim=32, vocab_size=vocab_size), context_length=512
    )
    return _run(name, config, shards, learning_rate=3e-3, matrix_learning_rate=0.02)


def own_text_from(name: str, data: Path, model: str) -> TrainRun:
    """As `own_text`, beginning with the weights of `model`, at a third of the learning rates."""
    files = open_model(locate(model))
    config = files.config
    files.close()
    shards = TokenShards(data / "train")
    run = _run(name, config, shards, learning_rate=1e-3, matrix_learning_rate=0.006)
    return replace(run, start_from=model)


def _run(
    name: str,
    config: DecoderConfig,
    shards: TokenShards,
    *,
    learning_rate: float,
    matrix_learning_rate: float,
) -> TrainRun:
    held_out = TokenShards(shards.folder.parent / "held-out")
    batch = _batch(shards.num_tokens, held_out.num_tokens, config)
    steps = min(max(_EPOCHS * shards.num_tokens // batch.tokens, _FEWEST_STEPS), _MOST_STEPS)
    return TrainRun(
        name=name,
        model=config,
        data=replace(OWN_TEXT, vocab_size=shards.manifest.vocab_size),
        batch=batch,
        optimizer=OptimizerConfig(
            kind="muon",
            learning_rate=learning_rate,
            matrix_learning_rate=matrix_learning_rate,
            b2=0.95,
            weight_decay=0.0,
        ),
        schedule=ScheduleConfig(
            shape="stable", warmup_steps=steps // 20, decay_steps=steps // 3, total_steps=steps
        ),
        initialization="huggingface",
        intervals=Intervals(
            measure_steps=5, evaluate_steps=max(steps // 5, 20), save_steps=max(steps // 10, 20)
        ),
    )


def _batch(num_tokens: int, num_held_out: int, config: DecoderConfig) -> BatchConfig:
    """Windows of 256 tokens, shorter ones where the text has not even three of those."""
    length = min(256, config.context_length)
    while length >= _SHORTEST and (num_tokens < 3 * length or num_held_out <= length):
        length //= 2
    if length < _SHORTEST:
        raise DataError(
            f"The text gives {num_tokens} tokens to train on and {num_held_out} to measure with, "
            "too few to learn from: take a text of some thousand words at least."
        )
    return BatchConfig(rows=16, length=length)
