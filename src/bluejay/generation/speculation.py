"""Speculation: ids drafted cheaply, several checked in one pass; the output stays what it was.

A draw depends on seed, sample and position alone, so a draft needs no rule for accepting it: each
position is chosen as an ordinary step chooses it, and the draft was right where it says the same
(docs/decisions/0017). What is chosen here is only how much is drafted when.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from bluejay.core.errors import UsageError
from bluejay.generation.decode_loop import DecodeLoop
from bluejay.generation.decode_state import MOST_STEPS
from bluejay.generation.runner import Runner
from bluejay.generation.sampling import Choice
from bluejay.generation.speculation_length import (
    SIZES,
    Acceptance,
    Outlook,
    PassTimes,
    choose_size,
    missed_saving,
)
from bluejay.generation.speculation_lookup import SuffixIndex

SpeculationMode = Literal["auto", "ngram", "off"]
MODES: Final = ("auto", "ngram", "off")
# Seconds that a reader does not notice: as long may a call of ordinary steps take.
MOMENT: Final = 0.05
# Ids between two tries of a draft that costs something, at first; each failure doubles them.
PROBE_AFTER: Final = 32
# Of matches in text by their length: the first guess of how often the next id follows them.
_MATCH_LENGTHS = (2, 3, 4, 6, 9, 16)
_MATCH_PRIORS = (0.2, 0.35, 0.5, 0.6, 0.75, 0.85)


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """Where drafts come from. The output is the same whatever is chosen.

    "auto" looks matches up in the text so far, where that pays, and where passes over one and over
    several positions agree to the bit: by native kernels on float32 rows. "ngram" does so from the
    first match on, though the programs have to be loaded first. `draft` is a smaller model of the
    same vocabulary that drafts instead. Rows that run together take ordinary steps.

    Raises UsageError for a mode that does not exist, or one that contradicts the draft model.
    """

    mode: SpeculationMode = "auto"
    draft: Runner | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UsageError(f"speculation must be {', '.join(MODES)}, not {self.mode!r}.")
        if self.draft is not None and self.mode != "auto":
            raise UsageError(
                f"speculation {self.mode!r} leaves the draft model without work: leave one of "
                "the two out."
            )

    @property
    def is_asked_for(self) -> bool:
        """Whether the user named a way to speculate."""
        return self.mode == "ngram" or self.draft is not None

    def is_possible(self, runner: Runner) -> bool:
        """Whether this runner speculates. Raises UsageError if it was asked to and cannot."""
        if self.mode == "off" or runner.repeats_positions:
            return self.mode != "off"
        if self.is_asked_for:
            raise UsageError(
                "Speculation needs the native kernels and float32 rows, which this model is not "
                "run with here (`bluejay doctor` tells why): leave it at 'auto' or 'off'."
            )
        return False


AUTOMATIC: Final = Speculation()


class CheckingLoop(Protocol):
    """A single row that takes steps and checks drafts, as `DecodeLoop` does."""

    @property
    def has_begun(self) -> bool: ...

    @property
    def room(self) -> int: ...

    @property
    def remaining(self) -> int: ...

    def advance(self, num_steps: int) -> list[list[Choice]]:
        """At most so many more choices, of its only row."""

    def check(self, drafted: Sequence[int], *, positions: int) -> list[Choice]: ...

    def end(self, row: int) -> None: ...

    def num_programs(self) -> int: ...


class Drafter(Protocol):
    """Something that guesses how a text goes on."""

    @property
    def is_free(self) -> bool:
        """Whether a draft costs so little that one is made at every id."""

    @property
    def cost(self) -> float:
        """What drafting one id takes, in parts of a step of the model that checks."""

    def acceptance(self) -> Acceptance:
        """What to expect of its drafts before any was made."""

    def kind(self) -> int:
        """What the next draft rests on, as `Acceptance` tells kinds apart; -1 for no draft."""

    def proposal(self, count: int) -> list[int]:
        """At most `count` ids that may come next."""

    def extend(self, ids: Sequence[int]) -> None:
        """The text goes on with these ids."""

    def num_programs(self) -> int:
        """How many programs drafting has compiled."""


class LookupDrafter:
    """Drafts what followed the same ids earlier in prompt and text."""

    is_free = True
    cost = 0.0

    def __init__(self, prompt_ids: Sequence[int]) -> None:
        self._index = SuffixIndex(prompt_ids)

    def acceptance(self) -> Acceptance:
        """By the length of the match."""
        return Acceptance(_MATCH_LENGTHS, _MATCH_PRIORS)

    def kind(self) -> int:
        """The length of the match."""
        return self._index.match_length or -1

    def proposal(self, count: int) -> list[int]:
        """As `SuffixIndex` has it."""
        return self._index.proposal(count)

    def extend(self, ids: Sequence[int]) -> None:
        """An id at a time into the index."""
        self._index.extend(ids)

    def num_programs(self) -> int:
        """None at all."""
        return 0


class Pace:
    """How many steps a call takes: as many as fit into a moment that a reader does not notice."""

    def __init__(self) -> None:
        self.num_steps = 1

    def observe(self, seconds: float, count: int) -> None:
        """A call of so many steps. Twice as many at most: the first calls may have compiled."""
        fitting = int(MOMENT * count / seconds) if seconds > 0 else MOST_STEPS
        self.num_steps = max(1, min(2 * self.num_steps, MOST_STEPS, fitting))


class PacedLoop:
    """A loop whose calls last a moment."""

    num_drafted = 0
    num_accepted = 0

    def __init__(self, loop: DecodeLoop, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._loop, self._clock, self._pace = loop, clock, Pace()

    def advance(self) -> list[list[Choice]]:
        """The next choices of every row, as `DecodeLoop.advance` gives them."""
        begun, steps = self._clock(), self._pace.num_steps
        found = self._loop.advance(steps)
        self._pace.observe(self._clock() - begun, steps)
        return found

    def end(self, row: int) -> None:
        """The row makes no more choices."""
        self._loop.end(row)


class SpeculativeLoop:
    """A loop of one row that checks drafts where that is faster, and else takes ordinary steps.

    Acceptance is learned beside ordinary steps too: a draft that costs nothing is made at every
    id, and compared with what comes. `clock` gives seconds.
    """

    def __init__(
        self,
        loop: CheckingLoop,
        drafter: Drafter,
        *,
        times: PassTimes,
        counts_loading: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.num_drafted = 0
        self.num_accepted = 0
        self._loop, self._drafter, self._times = loop, drafter, times
        self._counts_loading, self._clock = counts_loading, clock
        self._acceptance = drafter.acceptance()
        self._watched = _Watched(self._acceptance)
        self._pace = Pace()
        # Calls between two looks at the drafter grow while nothing comes of it.
        self._patience = 1
        self._until_probe, self._probe_after = 0, PROBE_AFTER

    def advance(self) -> list[list[Choice]]:
        """The next choices, as `DecodeLoop.advance` gives them."""
        if not self._loop.has_begun:
            [choices] = self._loop.advance(1)
            self._drafter.extend([choice.id for choice in choices])
            return [choices]
        size = self._size()
        choices = self._check(size) if size > 1 else self._step()
        self._times.observe_ids(len(choices))
        return [choices]

    def end(self, row: int) -> None:
        """The row makes no more choices."""
        self._loop.end(row)

    def _size(self) -> int:
        """Positions of the next pass."""
        kind = self._drafter.kind()
        if kind < 0 or self._loop.remaining < 2:
            return 1
        outlook = self._outlook(kind)
        size = choose_size(outlook, self._times, counts_loading=self._counts_loading)
        if size > 1 or self._drafter.is_free or self._times.step is None:
            return size
        fits = self._until_probe <= 0 and self._loop.room >= SIZES[0]
        return SIZES[0] if fits else 1

    def _outlook(self, kind: int) -> Outlook:
        return Outlook(
            probability=self._acceptance.probability(kind),
            drafted=SIZES[-1] - 1,
            room=self._loop.room,
            remaining=self._loop.remaining,
            coverage=self._acceptance.coverage if self._drafter.is_free else 0.5,
        )

    def _check(self, size: int) -> list[Choice]:
        """Draft, and choose at as many positions as the draft is right, and one more."""
        kind, programs, begun = self._drafter.kind(), self._num_programs(), self._clock()
        draft = self._drafter.proposal(min(size, self._loop.remaining) - 1)
        choices = self._loop.check(draft, positions=size)
        seconds = self._clock() - begun
        if self._num_programs() > programs or size not in self._times.loaded:
            # Compiling or reading what an earlier run compiled is not what a pass takes.
            self._times.observe_loading(size)
        else:
            self._times.observe_pass(size, seconds)
        right = _num_right(draft, choices)
        self.num_drafted += len(draft)
        self.num_accepted += right
        # A pass that ended with the row says nothing about the ids that it did not reach.
        failed = right < len(draft) and right < len(choices)
        self._acceptance.observe(kind, right=right, failed=failed)
        self._acceptance.observe_ids(len(choices), covered=right)
        self._watched.drop()
        self._drafter.extend([choice.id for choice in choices])
        if right:
            self._patience, self._probe_after = 1, PROBE_AFTER
        elif not self._drafter.is_free:
            self._probe_after *= 2
        self._until_probe = self._probe_after
        return choices

    def _step(self) -> list[Choice]:
        """Ordinary steps; drafts that cost nothing are made and compared beside them."""
        steps = self._pace.num_steps
        if self._drafter.is_free:
            steps = min(steps, self._patience)
        programs, begun = self._num_programs(), self._clock()
        [choices] = self._loop.advance(steps)
        seconds = self._clock() - begun
        if self._num_programs() > programs:
            self._times.loading_seconds = seconds
        elif choices:
            self._times.observe_steps(seconds, len(choices))
        self._pace.observe(seconds, max(1, len(choices)))
        self._until_probe -= len(choices)
        self._patience = min(2 * self._patience, MOST_STEPS)
        if self._drafter.is_free:
            self._watch(choices)
        else:
            self._drafter.extend([choice.id for choice in choices])
        return choices

    def _num_programs(self) -> int:
        return self._loop.num_programs() + self._drafter.num_programs()

    def _watch(self, choices: Sequence[Choice]) -> None:
        covered = 0
        for choice in choices:
            kind = self._drafter.kind()
            if not self._watched.is_on and kind >= 0:
                self._watched.begin(kind, self._drafter.proposal(SIZES[-1] - 1))
            if self._watched.compare(choice.id):
                covered += 1
                self._times.missed_seconds += missed_saving(self._outlook(kind), self._times)
            self._drafter.extend([choice.id])
        self._acceptance.observe_ids(len(choices), covered=covered)
        if self._watched.num_right >= 2 and self._size() > 1:
            self._patience = 1


class _Watched:
    """A draft that nobody checks, compared with what comes."""

    def __init__(self, acceptance: Acceptance) -> None:
        self._acceptance = acceptance
        self._kind, self._ids, self.num_right = 0, list[int](), 0

    @property
    def is_on(self) -> bool:
        return bool(self._ids)

    def begin(self, kind: int, ids: list[int]) -> None:
        self._kind, self._ids, self.num_right = kind, ids, 0

    def drop(self) -> None:
        """Something else goes on from here; what was right so far counts."""
        if self._ids:
            self._acceptance.observe(self._kind, right=self.num_right, failed=False)
        self.begin(0, [])

    def compare(self, token: int) -> bool:
        """Whether the draft had this id; it ends with the first that it had not."""
        if not self._ids:
            return False
        if self._ids[self.num_right] != token:
            self._acceptance.observe(self._kind, right=self.num_right, failed=True)
            self.begin(0, [])
            return False
        self.num_right += 1
        if self.num_right == len(self._ids):
            self.drop()
        return True


def _num_right(draft: Sequence[int], choices: Sequence[Choice]) -> int:
    """How many ids of the draft were chosen."""
    pairs = zip(draft, choices, strict=False)
    return next(
        (number for number, (token, choice) in enumerate(pairs) if token != choice.id),
        min(len(draft), len(choices)),
    )
