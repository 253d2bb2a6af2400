"""What a call over a kept cache chooses, step by step while it runs (docs/decisions/0019).

Axes: R rows of a call
"""

from collections.abc import Callable
from typing import Any

from bluejay.generation.decode_state import MOST_STEPS
from bluejay.generation.slot_rows import HostChoices, host_choices, num_choice_numbers
from bluejay.kernels.slot_cache import SlotCache

# Choices of some steps [steps, R], and whether the call has no more.
Hear = Callable[[HostChoices, bool], None]


def mail_size(num_rows: int, num_alternatives: int) -> tuple[int, int]:
    """The most steps of a call, and the most numbers that one of them posts."""
    return MOST_STEPS, num_rows * num_choice_numbers(num_alternatives)


def hear_steps(
    found: Any, kept: SlotCache, hear: Hear, *, num_rows: int, size: int, num_alternatives: int
) -> int:
    """Tell each step's choices when they are there, and give the number of steps at the end.

    `found` is that number, an array of the call that was begun: of `size` rows, of which `num_rows`
    were asked for, with so many alternatives of each choice. Raises what the call or `hear` does,
    when nothing runs any more.
    """
    width = num_choice_numbers(num_alternatives)
    try:
        for mail, is_last in kept.mail(found.is_ready):
            choices = host_choices(mail[: size * width].copy().reshape(1, size, width))
            hear(choices.of_rows(slice(num_rows)), is_last)
    finally:
        found.block_until_ready()
    return int(found)
