"""What a call over a kept cache chooses, step by step while it runs (docs/decisions/0019).

Axes: R rows of a call
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from bluejay.generation.decode_state import MOST_STEPS
from bluejay.generation.slot_rows import HostChoices, host_choices, num_choice_numbers
from bluejay.kernels.slot_cache import SlotCache

# Choices of some steps [steps, R], and whether the call has no more.
Hear = Callable[[HostChoices, bool], None]


def mail_size(num_rows: int, num_alternatives: int) -> tuple[int, int]:
    """The most steps of a call, and the most numbers that one of them posts."""
    return MOST_STEPS, num_rows * num_choice_numbers(num_alternatives)


@dataclass(frozen=True, kw_only=True)
class StepMail:
    """How a call tells: of `size` rows, of which `num_rows` were asked for, with so many
    alternatives of each choice."""

    num_rows: int
    size: int
    num_alternatives: int

    def read(self, found: Any, kept: SlotCache, hear: Hear, *, pause: Callable[[], float]) -> int:
        """Tell steps' choices when they are there, and give the number of steps at the end.

        `found` is that number, an array of the call that was begun. Nobody has use for a step for
        `pause` seconds: those that come meanwhile are told with the next. Raises what the call or
        `hear` does, when nothing runs any more.
        """
        width = num_choice_numbers(self.num_alternatives)
        try:
            for mail, is_last in kept.mail(found.is_ready, pause=pause):
                numbers = mail[:, : self.size * width].reshape(-1, self.size, width)
                # Copied: the next call's steps go where these are.
                hear(host_choices(numbers[:, : self.num_rows].copy()), is_last)
        finally:
            found.block_until_ready()
        return int(found)
