"""What listeners have not heard yet. It is told while the device works on something else."""

import logging
from collections import deque
from collections.abc import Callable

from bluejay.generation.engine_requests import EngineEvent
from bluejay.generation.engine_samples import Outcome, Sample

_LOGGER = logging.getLogger(__name__)


class News:
    """Events in the order in which they came to be; used by the engine's thread alone.

    `cancel` is called for a sample whose listener fails.
    """

    def __init__(self, cancel: Callable[[Sample], None]) -> None:
        self._cancel = cancel
        self._untold: deque[tuple[Sample, EngineEvent | Outcome]] = deque()

    def __bool__(self) -> bool:
        return bool(self._untold)

    def add(self, sample: Sample, event: EngineEvent | Outcome) -> None:
        """To be told next time."""
        self._untold.append((sample, event))

    def tell(self) -> None:
        """Tell all of it. Who has cancelled hears no more."""
        while self._untold:
            sample, found = self._untold[0]
            for event in found.events() if isinstance(found, Outcome) else (found,):
                if not sample.is_cancelled:
                    self._tell_one(sample, event)
            self._untold.popleft()

    def _tell_one(self, sample: Sample, event: EngineEvent) -> None:
        try:
            sample.listener(event)
        except Exception:
            _LOGGER.exception("A listener failed; its request is cancelled.")
            self._cancel(sample)
