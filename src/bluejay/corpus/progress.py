"""What a preparation tells its caller while it works."""

from collections.abc import Callable
from typing import Literal

Phase = Literal["read", "compare", "train", "encode"]
OnProgress = Callable[[Phase, int, int], None]
"""Called with the phase, and how many of how many bytes of it are done (0 of 0: not known)."""


class Counted:
    """Adds up the bytes of one phase, and reports them."""

    def __init__(self, on_progress: OnProgress, phase: Phase, total: int) -> None:
        self._on_progress = on_progress
        self._phase: Phase = phase
        self._total, self._done = total, 0
        on_progress(phase, 0, total)

    def add(self, num_bytes: int) -> None:
        """So many more are done."""
        self._done += num_bytes
        self._on_progress(self._phase, self._done, self._total)
