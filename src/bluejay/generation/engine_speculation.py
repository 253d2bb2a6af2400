"""A sample that runs alone checks drafts from its own text, as a single loop does.

Its output stays what it was (docs/decisions/0017); only how soon ids come changes.
"""

from collections.abc import Callable, Sequence

from bluejay.generation.engine_samples import Outcome, Sample
from bluejay.generation.sampling import Choice
from bluejay.generation.slot_rows import HostChoices
from bluejay.generation.speculation import LookupDrafter, SpeculativeLoop
from bluejay.generation.speculation_length import SIZES, PassTimes
from bluejay.generation.step_mail import Hear

# Takes at most so many steps, and tells of each when it was taken.
Steps = Callable[[int, Hear], object]
Check = Callable[[Sequence[int], int], HostChoices]


class LoneSample:
    """One sample as `SpeculativeLoop` sees a loop of one row.

    `take_steps` and `check` run the device, and `hear` is told what comes of it, and whether that
    is all for now; `capacity` is that of its row in the cache.
    """

    has_begun = True

    def __init__(
        self,
        sample: Sample,
        *,
        capacity: int,
        take_steps: Steps,
        check: Check,
        hear: Callable[[Outcome, bool], None],
        times: PassTimes,
    ) -> None:
        self._sample, self._capacity = sample, capacity
        self._take_steps, self._check, self._hear = take_steps, check, hear
        self._times = times
        self._drafter = LookupDrafter([*sample.request.prompts[0], *sample.ids])
        self._num_drafted_from = len(sample.ids)
        self._loop = self._new_loop()
        self._has_ended = False

    @property
    def room(self) -> int:
        """Positions that are left in its row of the cache."""
        [row] = self._sample.rows()
        return self._capacity - row.length

    @property
    def remaining(self) -> int:
        """Ids that may still be chosen."""
        return self._sample.remaining

    def go_on(self) -> None:
        """One call, whichever is thought to be fastest."""
        missed = self._sample.ids[self._num_drafted_from :]
        if missed:  # it was in company
            self._drafter.extend(missed)
            self._loop = self._new_loop()
        self._loop.advance()
        self._num_drafted_from = len(self._sample.ids)

    def advance(self, num_steps: int) -> list[list[Choice]]:
        """At most so many steps."""
        taken: list[Choice] = []

        def hear(choices: HostChoices, is_last: bool) -> None:
            taken.extend(self._taken(choices, is_last))

        self._take_steps(num_steps, hear)
        return [taken]

    def check(self, drafted: Sequence[int], *, positions: int) -> list[Choice]:
        """Choices after one pass over so many positions."""
        return self._taken(self._check(drafted, positions), True)

    def end(self, row: int) -> None:
        """Nobody asks for more."""

    def num_programs(self) -> int:
        """All are compiled before the engine is ready."""
        return 0

    def _taken(self, choices: HostChoices, is_last: bool) -> list[Choice]:
        if self._has_ended:  # by an id of which the device does not know
            return []
        outcome = self._sample.take(choices, 0)
        self._has_ended = outcome.ending is not None
        self._hear(outcome, is_last)
        return [
            Choice(id=score.id, logprob=score.logprob or 0.0, alternatives=())
            for score in outcome.scores
        ]

    def _new_loop(self) -> SpeculativeLoop:
        return SpeculativeLoop(self, self._drafter, times=self._times, counts_loading=False)


def known_times() -> PassTimes:
    """Times of programs that are all loaded."""
    times = PassTimes()
    times.loaded.update(SIZES)
    return times
