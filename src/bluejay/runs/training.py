"""The training job: put a described run together, begin it or go on with it."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.families import family_of
from bluejay.checkpoints.locate import locate
from bluejay.checkpoints.model_files import open_model
from bluejay.checkpoints.run_checkpoints import checkpoint_path
from bluejay.checkpoints.training_state import (
    TrainedModel,
    newest_sound,
    prune,
    read_document,
    restore,
    save,
)
from bluejay.core.errors import BluejayError, CheckpointError, DataError
from bluejay.core.files import sha256_of
from bluejay.data.batches import Batches
from bluejay.kernels.products import native_products
from bluejay.model.params import DecoderParams, stack_blocks
from bluejay.model.specs import abstract_params, decoder_specs, initialize, stacked_specs
from bluejay.runs.compile_cache import configure_compile_cache
from bluejay.runs.loading import load_params
from bluejay.runs.run_folder import CHECKPOINTS, locked
from bluejay.runs.state_arrays import (
    arrays_to_params,
    arrays_to_state,
    params_to_arrays,
    state_shapes,
    state_to_arrays,
)
from bluejay.runs.train_run import TrainRun
from bluejay.runs.training_samples import SampleWriter
from bluejay.shards.reader import TokenShards
from bluejay.training.callbacks import Every, Measure, Progress, Save
from bluejay.training.held_out import held_out_batches, make_evaluation
from bluejay.training.journal import Journal, Stopwatch
from bluejay.training.loop import Callback, train
from bluejay.training.loss import next_token_loss
from bluejay.training.optimizer import Optimizer
from bluejay.training.schedule import factor
from bluejay.training.signals import StopRequest, Watchdog
from bluejay.training.step import Metrics, TrainState, initial_state, make_step
from bluejay.vocab.loading import load_tokenizer
from bluejay.vocab.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class Listener:
    """Who is told about a run: every measurement, and sentences that deserve a line."""

    on_progress: Callable[[Progress], None] = lambda _progress: None
    on_note: Callable[[str], None] = lambda _note: None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended: finished, or saved and interrupted; steps and losses at the end."""

    is_finished: bool
    progress: Progress
    checkpoint: Path


def run_training(
    run: TrainRun, folder: Path, data: Path, listener: Listener, *, seconds: float = math.inf
) -> Outcome:
    """Train from the newest sound checkpoint in the run's folder, or from the beginning.

    `data` is a folder that `bluejay prepare` made. SIGINT, SIGTERM, or the end of `seconds`, end
    the sitting after the step at hand, saved; what is lost by any other end is what came after
    the last save.
    """
    configure_compile_cache()
    with locked(folder):
        deadline = time.monotonic() + seconds
        job = _Job(run, folder, data, listener)
        try:
            return job.run(deadline)
        except BluejayError as error:
            job.journal.status(job.progress.as_status("failed", str(error)))
            raise


class _Job:
    """One sitting of one run."""

    def __init__(self, run: TrainRun, folder: Path, data: Path, listener: Listener) -> None:
        self._run, self._folder, self._listener = run, folder, listener
        self._tokenizer = load_tokenizer(data / "tokenizer")
        run.model.check_tokenizer_size(self._tokenizer.vocab_size)
        self._shards = TokenShards(data / "train")
        self._held_out = TokenShards(data / "held-out")
        self._data_sha256 = sha256_of(data / "train" / "MANIFEST.json")
        self._specs = decoder_specs(run.model)
        self._optimizer = Optimizer(run.optimizer, run.schedule, stacked_specs(self._specs))
        self._watchdog = Watchdog()
        self.journal = Journal(folder, on_warning=listener.on_note)
        self.progress = Progress(
            step=0, total_steps=run.total_steps, tokens_per_step=run.batch.tokens
        )

    def run(self, deadline: float) -> Outcome:
        state = self._begin()
        self.progress.step = int(state.step)
        if self.progress.step >= self._run.total_steps:
            return self._outcome()
        batches = Batches(self._shards, self._run.batch)
        step = make_step(self._loss, self._optimizer, num_parts=self._run.num_parts)
        self.journal.status(self.progress.as_status("running"))
        with StopRequest() as stop, self._watchdog:
            callbacks: list[Callback] = [
                self._measure(),
                self._evaluate(),
                self._save(),
                self._beat,
            ]
            train(
                step,
                state,
                batches,
                total_steps=self._run.total_steps,
                callbacks=callbacks,
                should_stop=lambda: stop() or time.monotonic() > deadline,
            )
        return self._outcome()

    def _outcome(self) -> Outcome:
        is_finished = self.progress.step >= self._run.total_steps
        state = "finished" if is_finished else "interrupted"
        self.journal.status(self.progress.as_status(state))
        return Outcome(
            is_finished=is_finished,
            progress=self.progress,
            checkpoint=checkpoint_path(self._folder / CHECKPOINTS, self.progress.step),
        )

    def _begin(self) -> TrainState:
        root = self._folder / CHECKPOINTS
        newest = newest_sound(root, on_damage=self._listener.on_note)
        if newest is not None:
            return self._restored(newest)
        self._stopwatch = Stopwatch()
        return initial_state(self._first_params(), self._optimizer, seed=self._run.seed)

    def _first_params(self) -> DecoderParams:
        run = self._run
        if run.start_from is None:
            params = initialize(self._specs, jax.random.key(run.seed), recipe=run.initialization)
            return stack_blocks(params)
        files = open_model(locate(run.start_from))
        try:
            # Rotary positions have no parameters: a longer window is no other shape.
            if replace(files.config, context_length=run.model.context_length) != run.model:
                raise CheckpointError(
                    f"{run.start_from} is a decoder of another shape than the run describes: "
                    "take its configuration into the recipe."
                )
            return stack_blocks(load_params(files, dtype="float32"))
        finally:
            files.close()

    def _restored(self, checkpoint: Path) -> TrainState:
        document = read_document(checkpoint)
        if document.get("data_sha256") != self._data_sha256:
            raise DataError(
                f"{checkpoint} was trained on other shards than these: give the data it began "
                "with, or begin a new run."
            )
        like = self._abstract_state()
        params, state, _ = restore(checkpoint, config=self._run.model, expected=state_shapes(like))
        self._stopwatch = Stopwatch(float(document["seconds"]))
        self.progress.loss = document.get("loss")
        self.progress.bits_per_byte = document.get("bits_per_byte")
        return arrays_to_state(like, state, arrays_to_params(self._specs, params))

    def _abstract_state(self) -> TrainState:
        params = abstract_stacked_params(self._specs)
        start = partial(initial_state, optimizer=self._optimizer, seed=self._run.seed)
        state: TrainState = jax.eval_shape(start, params)
        return state

    def _loss(self, params: DecoderParams, batch: Any, _key: Any) -> tuple[Any, dict[str, Any]]:
        dtype = jnp.dtype(self._run.compute_dtype)
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        run = self._run
        with native_products(run.products):
            return next_token_loss(
                params, batch.ids, batch.weights, config=run.model, z_loss=run.z_loss
            )

    def _measure(self) -> Measure:
        peak = self._run.optimizer.learning_rate
        return Measure(
            self.progress,
            self.journal,
            self._stopwatch,
            every=self._run.intervals.measure_steps,
            learning_rate=lambda n: peak * float(factor(self._run.schedule, jnp.int32(n))),
            on_progress=self._listener.on_progress,
        )

    def _evaluate(self) -> Every:
        run = self._run
        batches = held_out_batches(
            self._held_out,
            rows=run.batch.rows // run.num_parts,
            length=run.batch.length,
            num_tokens=run.intervals.held_out_tokens,
        )
        evaluate = make_evaluation(run.model, batches, bytes_of_ids(self._tokenizer, run))
        samples = SampleWriter(run, self._tokenizer, self.journal)

        def action(done: int, state: TrainState) -> None:
            with self._watchdog.patient():
                found = evaluate(state.params)
                samples.write(done, state.params)
            self.progress.bits_per_byte = found.bits_per_byte
            values = {"loss": found.loss, "bits_per_byte": found.bits_per_byte}
            place = {"step": done, "tokens": done * run.batch.tokens}
            seconds = round(self._stopwatch.seconds(), 3)
            self.journal.measure("eval", place | {"seconds": seconds} | values)
            self._listener.on_progress(self.progress)

        return Every(action, every=run.intervals.evaluate_steps, stopwatch=self._stopwatch)

    def _save(self) -> Save:
        root = self._folder / CHECKPOINTS

        def action(done: int, state: TrainState) -> None:
            destination = checkpoint_path(root, done)
            if destination.exists():
                return
            arrays = state_to_arrays(state)
            with self._watchdog.patient():
                save(destination, self._model(state), arrays, document=self._document())
            prune(root, keep=self._run.intervals.keep_checkpoints)

        return Save(
            action,
            every=self._run.intervals.save_steps,
            stopwatch=self._stopwatch,
            on_warning=self._listener.on_note,
        )

    def _beat(self, done: int, state: TrainState, metrics: Metrics, *, is_last: bool) -> None:
        self._watchdog.beat()

    def _model(self, state: TrainState) -> TrainedModel:
        return TrainedModel(
            family=family_of(self._run.model),
            config=self._run.model,
            params=params_to_arrays(state.params),
            tokenizer=self._tokenizer,
        )

    def _document(self) -> dict[str, Any]:
        return {
            "run": self._run.name,
            "step": self.progress.step,
            "tokens": self.progress.step * self._run.batch.tokens,
            "seconds": self._stopwatch.seconds(),
            "loss": self.progress.loss,
            "bits_per_byte": self.progress.bits_per_byte,
            "data_sha256": self._data_sha256,
            "jax": jax.__version__,
            "saved": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }


def abstract_stacked_params(specs: DecoderParams) -> DecoderParams:
    """Shapes and dtypes of the stacked parameters in float32."""
    return abstract_params(stacked_specs(specs), np.float32)


def bytes_of_ids(tokenizer: Tokenizer, run: TrainRun) -> NDArray[np.int64]:
    """[V] the UTF-8 bytes of the text that each id stands for: none for special ones."""
    table = tokenizer.token_bytes_table()
    table += [None] * (run.model.vocab_size - len(table))
    is_text = [i not in tokenizer.special_ids for i in range(len(table))]
    sizes = [len(data or b"") * keep for data, keep in zip(table, is_text, strict=True)]
    return np.asarray(sizes, np.int64)
