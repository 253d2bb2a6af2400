"""What happens between steps: measuring, evaluating, saving. Each is told its interval in steps."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax

from bluejay.core.errors import DataError, DiskError
from bluejay.training.journal import Journal, OnWarning, Stopwatch
from bluejay.training.step import Metrics, TrainState

# A run whose gradients are not finite this many times in a row does not recover by itself.
MOST_SKIPPED_IN_A_ROW = 20


@dataclass(kw_only=True)
class Progress:
    """Where a run stands; losses in nats per token, times in seconds."""

    step: int
    total_steps: int
    tokens_per_step: int
    loss: float | None = None
    bits_per_byte: float | None = None
    tokens_per_second: float | None = None
    seconds: float = 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the present rate; None before there is one."""
        if not self.tokens_per_second:
            return None
        return (self.total_steps - self.step) * self.tokens_per_step / self.tokens_per_second

    def as_status(self, state: str, reason: str | None = None) -> dict[str, Any]:
        """The fields of status.json."""
        return {
            "state": state,
            "reason": reason,
            "step": self.step,
            "total_steps": self.total_steps,
            "tokens": self.step * self.tokens_per_step,
            "total_tokens": self.total_steps * self.tokens_per_step,
            "loss": self.loss,
            "bits_per_byte": self.bits_per_byte,
            "tokens_per_second": self.tokens_per_second,
            "seconds": self.seconds,
            "seconds_left": self.seconds_left,
        }


class Measure:
    """Reads the metrics of every step on the device, and of `every` steps' means on the host."""

    def __init__(
        self,
        progress: Progress,
        journal: Journal,
        stopwatch: Stopwatch,
        *,
        every: int,
        learning_rate: Callable[[int], float],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._progress, self._journal, self._stopwatch = progress, journal, stopwatch
        self._every, self._learning_rate, self._on_progress = every, learning_rate, on_progress
        self._pending: list[Metrics] = []
        self._last_seconds = stopwatch.seconds()
        self._skipped_in_a_row = 0

    def __call__(self, done: int, state: TrainState, metrics: Metrics, *, is_last: bool) -> None:
        """A callback of the loop."""
        self._pending.append(metrics)
        if done % self._every and not is_last:
            return
        read = [{name: float(value) for name, value in m.items()} for m in self._pending]
        self._pending.clear()
        self._check_skipped(read, done)
        self._write(done, read)

    def _write(self, done: int, read: list[dict[str, float]]) -> None:
        means = {name: sum(m[name] for m in read) / len(read) for name in read[0]}
        now = self._stopwatch.seconds()
        progress = self._progress
        progress.step, progress.seconds, progress.loss = done, now, means["loss"]
        elapsed = max(now - self._last_seconds, 1e-9)
        progress.tokens_per_second = len(read) * progress.tokens_per_step / elapsed
        self._last_seconds = now
        values = means | {
            "step": done,
            "tokens": done * progress.tokens_per_step,
            "seconds": round(now, 3),
            "learning_rate": self._learning_rate(done - 1),
            "tokens_per_second": round(progress.tokens_per_second, 1),
            "skipped": sum(int(m["is_skipped"]) for m in read),
        }
        values.pop("is_skipped")
        self._journal.measure("train", values)
        self._journal.status(progress.as_status("running"))
        self._on_progress(progress)

    def _check_skipped(self, read: list[dict[str, float]], done: int) -> None:
        for metrics in read:
            is_skipped = bool(metrics["is_skipped"])
            self._skipped_in_a_row = self._skipped_in_a_row + 1 if is_skipped else 0
        if self._skipped_in_a_row >= MOST_SKIPPED_IN_A_ROW:
            raise DataError(
                f"The gradients of the last {self._skipped_in_a_row} steps up to {done} are not "
                "finite: lower the learning rate and resume from the last checkpoint."
            )


class Every:
    """Calls an action every so many steps and at the end, while the stopwatch stands still."""

    def __init__(
        self, action: Callable[[int, TrainState], None], *, every: int, stopwatch: Stopwatch
    ) -> None:
        self._action, self._every, self._stopwatch = action, every, stopwatch

    def __call__(self, done: int, state: TrainState, metrics: Metrics, *, is_last: bool) -> None:
        """A callback of the loop."""
        if done % self._every == 0 or is_last:
            jax.block_until_ready(metrics)
            with self._stopwatch.paused():
                self._action(done, state)


class Save:
    """Saves every so many steps and at the end. A full disk does not stop the training: the next
    save tries again, and only the last one must succeed."""

    def __init__(
        self,
        action: Callable[[int, TrainState], None],
        *,
        every: int,
        stopwatch: Stopwatch,
        on_warning: OnWarning,
    ) -> None:
        self._action, self._every = action, every
        self._stopwatch, self._on_warning = stopwatch, on_warning

    def __call__(self, done: int, state: TrainState, metrics: Metrics, *, is_last: bool) -> None:
        """A callback of the loop."""
        if done % self._every and not is_last:
            return
        with self._stopwatch.paused():
            try:
                self._action(done, state)
            except DiskError as error:
                if is_last:
                    raise
                self._on_warning(f"Step {done} is not saved: {error} Training goes on.")
