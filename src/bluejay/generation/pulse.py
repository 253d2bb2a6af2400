"""Whether work goes on, as another thread may see it. Starts without JAX."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, NamedTuple

_KEPT: Final = 64


class Beat(NamedTuple):
    """The pieces that were begun so far, and in how many parts the one that runs is done: 0 if
    none runs."""

    number: int
    parts: int


class Pulse:
    """A thread's work, piece by piece: whether one runs, and how long a part of one takes.

    Written by one thread at a time, read by any without a lock. `clock` gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.beat = Beat(0, 0)
        self._clock, self._begun = clock, 0.0
        # A list of one length, which may be copied while it is written.
        self._seconds: list[float] = [0.0] * _KEPT

    def begin(self, parts: int = 1) -> None:
        """A piece of work begins: one call of the device, or as many parts."""
        self.beat = Beat(self.beat.number + 1, parts)
        self._begun = self._clock()

    def end(self) -> None:
        """It has ended."""
        number, parts = self.beat
        self._seconds[number % _KEPT] = (self._clock() - self._begun) / parts
        self.beat = Beat(number, 0)

    @contextmanager
    def piece(self, parts: int = 1) -> Iterator[None]:
        """A piece of work runs inside the block."""
        self.begin(parts)
        try:
            yield
        finally:
            self.end()

    @property
    def median(self) -> float:
        """Seconds of a part, of the last pieces; 0 before there are some."""
        number = self.beat.number
        return statistics.median(self._seconds if number >= _KEPT else self._seconds[: number + 1])
