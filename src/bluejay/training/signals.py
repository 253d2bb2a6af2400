"""Stopping on request, and stopping what hangs.

Python runs signal handlers between bytecodes, and a training step may keep the interpreter away
for seconds; so a thread listens to the pipe into which the system writes each signal at once.
"""

import faulthandler
import os
import signal
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Self

from bluejay.core.errors import HungError

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_NOW = 130


class StopRequest:
    """Set by the first SIGINT or SIGTERM; the second ends the process at once.

    Only in the main thread, and only inside the `with` block.
    """

    def __init__(self) -> None:
        self._count = 0
        self._requested = threading.Event()

    def __call__(self) -> bool:
        """Whether somebody has asked to stop."""
        return self._requested.is_set()

    def __enter__(self) -> Self:
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._old = {number: signal.signal(number, self._ignore) for number in _SIGNALS}
        self._old_wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._listen, daemon=True, name="bluejay-signals").start()
        return self

    def __exit__(self, *error: object) -> None:
        signal.set_wakeup_fd(self._old_wakeup)
        for number, handler in self._old.items():
            signal.signal(number, handler)
        os.close(self._write)

    def _ignore(self, _number: int, _frame: object) -> None:
        """A Python handler must be there for the system to write into the pipe."""

    def _listen(self) -> None:
        with os.fdopen(self._read, "rb", buffering=0) as pipe:
            while byte := pipe.read(1):
                if byte[0] not in _SIGNALS:
                    continue
                self._count += 1
                if self._count > 1:
                    os._exit(EXIT_NOW)
                self._requested.set()
                _tell("\nStopping after this step, saved; Ctrl-C once more stops at once.\n")


class Watchdog:
    """Ends a process that makes no step for `factor` times the median, and at least `least`.

    Before the first beat, and inside `patient`, `first` seconds are granted: for compiling and for
    what is done between steps. All in seconds.
    """

    def __init__(
        self, *, factor: float = 10.0, least: float = 120.0, first: float = 3600.0
    ) -> None:
        self._factor, self._least, self._first = factor, least, first
        self._limit = first
        self._is_patient = False
        self._durations: deque[float] = deque(maxlen=50)
        self._last = time.monotonic()
        self._done = threading.Event()

    def beat(self) -> None:
        """Something was finished."""
        now = time.monotonic()
        self._durations.append(now - self._last)
        self._last = now
        if len(self._durations) > 1:
            self._limit = max(self._factor * statistics.median(self._durations), self._least)

    @contextmanager
    def patient(self) -> Iterator[None]:
        """What happens inside the block is no step, and may take its time."""
        self._last, self._is_patient = time.monotonic(), True
        try:
            yield
        finally:
            self._last, self._is_patient = time.monotonic(), False

    def __enter__(self) -> Self:
        self._last = time.monotonic()
        threading.Thread(target=self._watch, daemon=True, name="bluejay-watchdog").start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()

    def _watch(self) -> None:
        pause = min(1.0, self._least / 4)
        looked = time.monotonic()
        while not self._done.wait(pause):
            before, looked = looked, time.monotonic()
            if looked - before > self._least / 2:
                # This thread was kept away too: the whole process was stopped, and hangs not.
                self._last += looked - before
            silent = looked - self._last
            if silent > (self._first if self._is_patient else self._limit):
                faulthandler.dump_traceback(file=sys.stderr, all_threads=True)
                _tell(
                    f"\nbluejay: no step for {silent:.0f} s, so the run hangs and is stopped; the "
                    "stacks above say where. `bluejay resume RUN` goes on from its checkpoint.\n"
                )
                os._exit(HungError.exit_code)


def _tell(text: str) -> None:
    """Straight to the terminal: the main thread may hold the lock of sys.stderr."""
    with suppress(OSError):
        os.write(2, text.encode())
