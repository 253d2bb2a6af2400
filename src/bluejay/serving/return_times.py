"""When those who are refused for lack of room are to come back: not all at once.

Whoever is told "in one second" is there again in one second, with everybody else who was told so.
So the refused are given places in a line that nobody keeps: as many a second as twice the requests
that end, since some never come back, from one second on. RFC 9110, 10.2.3, has whole seconds.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Final

LATEST: Final = 30
"""Seconds. The line begins anew behind it: what is told must not outlive the rush."""
_SOONEST = 1.0
_WINDOW_SECONDS = 10.0
# Of a server that has not finished anything yet.
_LEAST_RATE = 2.0


class ReturnTimes:
    """Gives out the places; used on the event loop."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()
        self._seen: deque[tuple[float, int]] = deque()

    def next(self, num_finished: int) -> int:
        """Whole seconds for one more, where so many requests have ended since the start."""
        now = self._clock()
        rate = 2 * max(self._rate(now, num_finished), _LEAST_RATE)
        due = max(self._last, now + _SOONEST)
        if due > now + LATEST:
            due = now + _SOONEST
        self._last = due + 1 / rate
        return math.ceil(due - now)

    def _rate(self, now: float, num_finished: int) -> float:
        """Requests a second that ended lately."""
        seen = self._seen
        if not seen or now - seen[-1][0] >= _WINDOW_SECONDS / 10:
            seen.append((now, num_finished))
        while len(seen) > 1 and now - seen[1][0] >= _WINDOW_SECONDS:
            seen.popleft()
        begun, before = seen[0]
        return (num_finished - before) / (now - begun) if now > begun else 0.0
