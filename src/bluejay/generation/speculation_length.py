"""How long a draft pays: times and acceptance as measured go in, a number of positions comes out.

Neither a clock nor JAX is here: times are given, so that every decision can be repeated.

A pass over T positions runs one id that is certain and T - 1 drafted ones. When each drafted id is
right with probability p, it yields 1 + p + ... + p**(T - 1) ids (Leviathan et al. 2023,
arXiv:2211.17192, equation 1).
"""

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from statistics import median
from typing import Final

# Positions of a pass; each is a program of its own. Up to 16, positions have the bits of single
# steps.
SIZES: Final = (2, 4, 8, 16)
# What is not a twentieth faster is left: readings are no better than that.
MARGIN: Final = 0.95
# Seconds that a program takes to be traced and read from the compile cache, until one was seen.
LOADING_SECONDS: Final = 0.5
# A further position in parts of a step, until a pass was measured.
POSITION_COST: Final = 0.1
# Ids after which the times of a size that was not used are forgotten: it is then tried again.
STALE_AFTER: Final = 256
_READINGS = 7
_MEMORY = 64.0  # ids
_PRIOR_WEIGHT = 4.0


class Acceptance:
    """How often drafted ids were right, by the kind of draft.

    A kind is the length of the match that a draft rests on. `limits` are the smallest lengths of
    each class of kinds, `priors` what is assumed of it before anything was seen.
    """

    def __init__(self, limits: Sequence[int], priors: Sequence[float]) -> None:
        assert len(limits) == len(priors)
        self._limits = tuple(limits)
        self._right = [_PRIOR_WEIGHT * prior for prior in priors]
        self._tried = [_PRIOR_WEIGHT] * len(priors)
        self._covered, self._seen = 0.0, 16.0

    def observe(self, kind: int, *, right: int, failed: bool) -> None:
        """A draft of which the first `right` ids were right, and the next was not if it failed."""
        at, tried = self._place(kind), right + failed
        keep = max(0.0, 1 - tried / _MEMORY)
        self._right[at] = keep * self._right[at] + right
        self._tried[at] = keep * self._tried[at] + tried

    def observe_ids(self, count: int, *, covered: int) -> None:
        """Of `count` new ids so many had been drafted rightly, in a pass or beside it."""
        keep = max(0.0, 1 - count / _MEMORY)
        self._covered = keep * self._covered + covered
        self._seen = keep * self._seen + count

    def probability(self, kind: int) -> float:
        """That a drafted id is right when those before it were."""
        at = self._place(kind)
        return self._right[at] / self._tried[at]

    @property
    def coverage(self) -> float:
        """The share of the last ids that were drafted rightly."""
        return self._covered / self._seen

    def _place(self, kind: int) -> int:
        return max(0, bisect_right(self._limits, kind) - 1)


class PassTimes:
    """Seconds of an ordinary step and of passes, as the median of the last readings.

    `draft_cost` is what drafting one id takes in parts of a step, until a pass was measured.
    """

    def __init__(self, *, draft_cost: float = 0.0) -> None:
        self.loading_seconds = LOADING_SECONDS
        self.loaded: set[int] = set()
        # What programs that are not loaded would have saved since the last one was.
        self.missed_seconds = 0.0
        self._draft_cost = draft_cost
        self._steps: deque[float] = deque(maxlen=_READINGS)
        self._step_count = 0
        self._passes: dict[int, deque[float]] = {}
        self._unused: dict[int, int] = {}

    @property
    def step(self) -> float | None:
        """Seconds of an ordinary step; None before one was measured."""
        return median(self._steps) if self._steps else None

    def observe_steps(self, seconds: float, count: int) -> None:
        """A call of `count` ordinary steps. The longest calls tell what a step really costs."""
        if count < min(self._step_count, 4):
            return
        if count >= 4 > self._step_count:
            self._steps.clear()
        self._step_count = max(self._step_count, count)
        self._steps.append(seconds / count)

    def observe_loading(self, size: int) -> None:
        """The first pass of a size, which loaded its program: how long it took says nothing."""
        self.loaded.add(size)
        self.missed_seconds = 0.0

    def observe_pass(self, size: int, seconds: float) -> None:
        """A pass with its drafting; not its first one (see `observe_loading`)."""
        self._passes.setdefault(size, deque(maxlen=_READINGS)).append(seconds)
        self._unused[size] = 0

    def observe_ids(self, count: int) -> None:
        """So many ids were made since: old readings of a size that is not used lapse."""
        for size in list(self._passes):
            self._unused[size] += count
            if self._unused[size] >= STALE_AFTER:
                del self._passes[size], self._unused[size]

    def of(self, size: int) -> float:
        """Seconds of a pass; where none was measured, by the nearest size or a guess."""
        assert self.step is not None, "passes are judged against ordinary steps"
        if size == 1:
            return self.step
        if size in self._passes:
            return median(self._passes[size])
        slope = self.step * (POSITION_COST + self._draft_cost)
        if self._passes:
            nearest = min(self._passes, key=lambda other: abs(other - size))
            slope = max(0.0, (median(self._passes[nearest]) - self.step) / (nearest - 1))
        return self.step + slope * (size - 1)


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What is known when a pass is to be chosen."""

    probability: float  # that a drafted id is right
    drafted: int  # ids that can be drafted
    room: int  # positions that are left in the cache
    remaining: int  # ids that may still be made
    coverage: float = 1.0  # share of them that drafts are expected to give


def expected_ids(probability: float, drafted: int) -> float:
    """Ids that a pass with so many drafted ones yields on average."""
    return sum(probability**count for count in range(drafted + 1))


def choose_size(outlook: Outlook, times: PassTimes, *, counts_loading: bool) -> int:
    """The number of positions with the most expected ids per second; 1 is an ordinary step.

    A program that is not loaded is chosen when what it may save in this text and what it would have
    saved in earlier ones come to more than its loading takes (the ski rental problem), or when
    loading does not count.
    """
    if times.step is None:
        return 1
    costs = {size: _cost(size, outlook, times) for size in _fitting(outlook)}
    known = set(costs) & times.loaded if counts_loading else set(costs)
    best, _ = _best(costs, known, times.step)
    if not counts_loading:
        return best
    size, saving = _best_unloaded(costs, times)
    expected = outlook.remaining * outlook.coverage * saving
    pays = saving > 0 and times.missed_seconds + expected > times.loading_seconds
    return size if pays else best


def missed_saving(outlook: Outlook, times: PassTimes) -> float:
    """Seconds that each rightly drafted id would have saved with the best of the programs that are
    not loaded."""
    if times.step is None:
        return 0.0
    costs = {size: _cost(size, outlook, times) for size in _fitting(outlook)}
    return _best_unloaded(costs, times)[1]


def _best(costs: Mapping[int, float], sizes: Set[int], standing: float) -> tuple[int, float]:
    """The cheapest size with its seconds per id; 1 and `standing` where none is much cheaper."""
    cheapest = min(sizes, key=lambda size: costs[size], default=1)
    if cheapest == 1 or costs[cheapest] >= standing * MARGIN:
        return 1, standing
    return cheapest, costs[cheapest]


def _best_unloaded(costs: Mapping[int, float], times: PassTimes) -> tuple[int, float]:
    """The size that saves most against what is loaded, and the seconds it saves per id; (1, 0.0)
    where none does."""
    assert times.step is not None, "passes are judged against ordinary steps"
    _, standing = _best(costs, set(costs) & times.loaded, times.step)
    size, cost = _best(costs, set(costs) - times.loaded, standing)
    return size, standing - cost


def _fitting(outlook: Outlook) -> list[int]:
    """Sizes for which there is room, and no more than hold the whole draft."""
    longest = min(outlook.drafted, outlook.remaining - 1)
    if longest < 1:
        return []
    enough = next((size for size in SIZES if size > longest), SIZES[-1])
    return [size for size in SIZES if size <= min(enough, outlook.room)]


def _cost(size: int, outlook: Outlook, times: PassTimes) -> float:
    """Seconds per id."""
    drafted = min(size - 1, outlook.drafted, outlook.remaining - 1)
    return times.of(size) / expected_ids(outlook.probability, drafted)
