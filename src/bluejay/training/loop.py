"""The loop: a step, then what comes after it. Everything else is a callback."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from bluejay.training.step import Metrics, Step, TrainState


class BatchSource(Protocol):
    """Batches by number: `bluejay.data.batches.Batches`, or anything else with an index."""

    def __getitem__(self, number: int, /) -> Any: ...


class Callback(Protocol):
    """Called after every step with the number of finished ones, the state and the metrics.

    Metrics are on the device: a callback that reads them waits for the step. `is_last` says that
    nothing comes after.
    """

    def __call__(
        self, done: int, state: TrainState, metrics: Metrics, *, is_last: bool
    ) -> None: ...


def train(
    step: Step,
    state: TrainState,
    batches: BatchSource,
    *,
    total_steps: int,
    callbacks: Sequence[Callback],
    should_stop: Callable[[], bool],
) -> TrainState:
    """Run until `total_steps` are done, or until the end of the step in which `should_stop`."""
    done = int(state.step)
    while done < total_steps:
        state, metrics = step(state, batches[done])
        done += 1
        is_last = done == total_steps or should_stop()
        for callback in callbacks:
            callback(done, state, metrics, is_last=is_last)
        if is_last:
            break
    return state
