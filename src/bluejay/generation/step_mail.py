"""What a call over a kept cache chooses, step by step while it runs (docs/decisions/0019).

Axes: R rows of a call  V vocabulary
"""

from collections.abc import Callable
from typing import Any, Final

from jaxtyping import Array

from bluejay.generation.decode_state import MOST_STEPS
from bluejay.generation.slot_rows import HostChoices, host_choices, num_choice_numbers
from bluejay.kernels.slot_cache import SlotCache

# Choices of some steps [steps, R], and whether the call has no more.
Hear = Callable[[HostChoices, bool], None]


def mail_size(num_rows: int, num_alternatives: int) -> tuple[int, int]:
    """The most steps of a call, and the most numbers that one of them posts."""
    return MOST_STEPS, num_rows * num_choice_numbers(num_alternatives)


class Call:
    """A call that was begun: `found` is its number of steps, when it has ended.

    It was asked for `num_rows` rows, has `size` of them, and each choice so many alternatives.
    """

    def __init__(self, found: Array, *, num_rows: int, size: int, num_alternatives: int) -> None:
        self._found: Final = found
        self._num_rows, self._size = num_rows, size
        self._width = num_choice_numbers(num_alternatives)

    def hear_of(self, kept: SlotCache, hear: Hear) -> int:
        """Tell each step's choices when they are there, and give the number of steps at the end.

        Raises what the call or `hear` does, when nothing runs any more.
        """
        try:
            for mail, is_last in kept.mail(self._has_ended):
                numbers = mail[: self._size * self._width].copy()
                choices = host_choices(numbers.reshape(1, self._size, self._width))
                hear(choices.of_rows(slice(self._num_rows)), is_last)
        finally:
            self._found.block_until_ready()
        return int(self._found)

    def _has_ended(self) -> bool:
        found: Any = self._found  # whose type does not tell what JAX's arrays can
        return bool(found.is_ready())
