"""Work that never ends: a call of the device that does not come back holds its thread for ever."""

import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from bluejay.generation.pulse import Beat, Pulse

# Seconds between two looks that count at most: who was stopped, or asleep, for longer has not hung.
_MOST_BETWEEN: Final = 5.0
# Times the median of what ended, where that is longer than the least limit.
_FACTOR: Final = 10.0


class Hang(NamedTuple):
    """What does not go on, for how long it did not, and how long it might; in seconds."""

    name: str
    seconds: float
    limit: float


class HangWatch:
    """Looks at pulses, every second or so; `least` seconds are granted to each part.

    Time counts as it is seen: a piece of work hangs that was there at every look for longer than
    its limit.
    """

    def __init__(
        self,
        pulses: Mapping[str, Pulse],
        *,
        least: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pulses, self._least, self._clock = pulses, least, clock
        self._seen: dict[str, tuple[Beat, float]] = {}
        self._looked = clock()

    def look(self) -> Hang | None:
        """The first of the pulses whose work hangs."""
        now = self._clock()
        passed, self._looked = min(now - self._looked, _MOST_BETWEEN), now
        for name, pulse in self._pulses.items():
            beat = pulse.beat
            before, seconds = self._seen.get(name, (None, 0.0))
            seconds = seconds + passed if beat == before and beat.parts else 0.0
            self._seen[name] = (beat, seconds)
            limit = max(_FACTOR * pulse.median, self._least) * beat.parts
            if seconds > limit:
                return Hang(name, seconds, limit)
        return None
