"""What listeners have not heard yet. It is told while the device works on something else."""

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from bluejay.generation.engine_requests import EngineEvent, NewTokens, TokenScore
from bluejay.generation.engine_samples import Outcome, Sample

# Processor time that an event takes until a client on this machine has read it, and the share of
# one processor that all of them may have while a reader can wait for his next word.
EVENT_SECONDS: Final = 4e-4
EVENTS_SHARE: Final = 0.16
# To a reader, words that are no further apart come as one.
MOST_APART: Final = 0.03
# To who is patient: a step's own work for the host is most of what it costs him.
PATIENT_APART: Final = 0.5
# Who lacks no more than this share of the time apart hears with the others: it saves a wake-up.
_SLACK: Final = 0.25
_LOGGER = logging.getLogger(__name__)


def time_apart(num_samples: int) -> float:
    """Seconds between two events of one of so many samples: few of slow ones hear each word."""
    return min(MOST_APART, num_samples * EVENT_SECONDS / EVENTS_SHARE)


class News:
    """Events of each sample, in the order in which they came to be; used by one thread alone.

    `cancel` is called for a sample whose listener fails. `clock` gives seconds.
    """

    def __init__(
        self, cancel: Callable[[Sample], None], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._cancel, self._clock = cancel, clock
        self._untold: dict[Sample, list[EngineEvent | Outcome]] = {}

    def __bool__(self) -> bool:
        return bool(self._untold)

    def add(self, sample: Sample, event: EngineEvent | Outcome) -> None:
        """To be told next time."""
        self._untold.setdefault(sample, []).append(event)

    def pause(self, samples: Iterable[Sample], *, apart: float) -> float:
        """Seconds in which none of these, who wait for words, needs to hear of any."""
        dues = (sample.told_at + _time_apart(sample, apart) for sample in samples)
        return max(0.0, min(dues, default=-math.inf) - self._clock())

    def tell(self, *, apart: float | None = None) -> None:
        """Tell what is new of each sample: all of it, or, but for ends, no words sooner than some
        `apart` seconds after the last ones. Who has cancelled hears no more."""
        now = self._clock()
        for sample in list(self._untold):
            found = self._untold[sample]
            words = [event for event in found if isinstance(event, Outcome)]
            is_end = len(words) < len(found) or words[-1].ending is not None
            nearly_due = sample.told_at + (1 - _SLACK) * _time_apart(sample, apart)
            if now < nearly_due and not (is_end or sample.is_cancelled):
                continue
            if words:
                sample.told_at = now
            for event in _joined(found):
                if not sample.is_cancelled:
                    self._tell_one(sample, event)
            # Not before: who drains waits until it is told.
            del self._untold[sample]

    def _tell_one(self, sample: Sample, event: EngineEvent) -> None:
        try:
            sample.listener(event)
        except Exception:
            _LOGGER.exception("A listener failed; its request is cancelled.")
            self._cancel(sample)


def _time_apart(sample: Sample, apart: float | None) -> float:
    if apart is None:
        return 0.0
    return PATIENT_APART if sample.request.is_patient else apart


def _joined(found: Iterable[EngineEvent | Outcome]) -> Iterator[EngineEvent]:
    """The events, words that follow each other as one."""
    scores: list[TokenScore] = []
    for item in found:
        for event in item.events() if isinstance(item, Outcome) else (item,):
            if isinstance(event, NewTokens):
                scores += event.scores
                continue
            if scores:
                yield NewTokens(scores=tuple(scores))
                scores.clear()
            yield event
    if scores:
        yield NewTokens(scores=tuple(scores))
