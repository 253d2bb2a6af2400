"""How many steps a call takes that tells of nothing before its end. No JAX; times are given.

Few steps let new requests, cancellations and a reader's next word come soon; many leave the host
less to do. So a call lasts no longer than a moment, or than two steps where these are short enough
for a reader.
"""

import math
from collections import deque
from statistics import median
from typing import Final

# Seconds that a call may last: what arrives meanwhile waits so long.
MOMENT: Final = 0.01
# Seconds that two steps may take together: to a reader their words come as one.
PAIR: Final = 0.03
# Of the time that the host may take between two calls.
HOST_SHARE: Final = 0.05
# Seconds of a call beside its steps: arguments in, choices out (docs/lab-book.md).
CALL_SECONDS: Final = 5e-4
_READINGS = 9


class CallPace:
    """Learns what steps cost for each number of rows, and what the host takes between two calls."""

    def __init__(self) -> None:
        self._steps: dict[int, deque[float]] = {}
        self._between: deque[float] = deque(maxlen=_READINGS)

    def num_steps(self, num_rows: int, *, most: int) -> int:
        """Steps of the next call, at most so many; one until something is known."""
        readings = self._steps.get(num_rows)
        if not readings:
            return 1
        step = max(median(readings), 1e-6)
        host = CALL_SECONDS + (median(self._between) if self._between else 0.0)
        wanted, fitting = math.ceil(host / (HOST_SHARE * step)), int(MOMENT / step)
        fitting = max(fitting, 2 if 2 * step <= PAIR else 1)
        return max(1, min(most, wanted, fitting))

    def observe_call(self, num_rows: int, *, steps: int, seconds: float) -> None:
        """A call of so many steps."""
        if steps:
            readings = self._steps.setdefault(num_rows, deque(maxlen=_READINGS))
            readings.append(max(0.0, seconds - CALL_SECONDS) / steps)

    def observe_host(self, seconds: float) -> None:
        """So long the device waited between two calls."""
        self._between.append(seconds)
