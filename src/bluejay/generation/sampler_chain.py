"""A chain of samplers of one sample, on the host: in any order, and with what was chosen before.

The engine asks it for every id: `combine` changes the logits, `accept` hears what was drawn. So the
engine itself only draws, with its own seed, and the same seed gives the same text. Starts without
JAX.
"""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bluejay.generation import candidates as filters
from bluejay.generation.candidates import Candidates, Numbers, Sampler
from bluejay.generation.engine_requests import Constraint

_LARGEST_PENALTY = 1e30


class Stage(Protocol):
    """A step of a chain that knows the ids before: the prompt's, then every chosen one."""

    def begin(self, prompt: Sequence[int]) -> None:
        """Called once, before the first choice."""

    def sample(self, candidates: Candidates) -> Candidates:
        """What is left of the candidates; at least one."""

    def chosen(self, token: int) -> None:
        """The id that was drawn in the end."""


class Filter:
    """A stage that looks at the candidates alone."""

    def __init__(self, sampler: Sampler) -> None:
        self._sampler = sampler

    def begin(self, prompt: Sequence[int]) -> None:
        pass

    def sample(self, candidates: Candidates) -> Candidates:
        return self._sampler(candidates)

    def chosen(self, token: int) -> None:
        pass


class SamplerChain:
    """Stages in order, for one sample; the engine's `Constraint` and, by `combine`, its `Combine`.

    `allowed` [V] are ids that may come at all; `constraint` narrows them, and goes first where
    nothing is in both.
    """

    def __init__(
        self,
        stages: Sequence[Stage],
        prompt: Sequence[int],
        *,
        allowed: NDArray[np.bool_],
        constraint: Constraint | None = None,
    ) -> None:
        self._stages, self._allowed, self._constraint = stages, allowed, constraint
        for stage in stages:
            stage.begin(prompt)

    def combine(self, logits: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits [1, V] to [V]: -inf for the ids that the samplers take away."""
        [row] = logits
        left = Candidates.of(row, self.allowed())
        for stage in self._stages:
            left = stage.sample(left)
        return left.row(row.size)

    def allowed(self) -> NDArray[np.bool_]:
        """[V] bool: the ids that may come next."""
        if self._constraint is None:
            return self._allowed
        narrowed = self._constraint.allowed()
        both = narrowed & self._allowed
        return both if both.any() else narrowed

    def accept(self, token: int) -> None:
        """The id that came."""
        if self._constraint is not None:
            self._constraint.accept(token)
        for stage in self._stages:
            stage.chosen(token)

    @property
    def is_complete(self) -> bool:
        """Whether nothing may follow."""
        return self._constraint is not None and self._constraint.is_complete


class Penalties:
    """What stands in the last `last_n` ids is made less likely.

    Repetition divides positive scores and multiplies negative ones, by the whole penalty in the
    nearer half of those ids and in the farther half by the part `slope` of it (1 + (penalty - 1) *
    slope; KoboldCpp's). Presence and frequency are subtracted, once and as often as the id stands
    there. `last_n` -1 means all ids, 0 none; without `counts_prompt` only those that were chosen.
    """

    def __init__(
        self,
        *,
        repetition: float = 1.0,
        slope: float = 1.0,
        presence: float = 0.0,
        frequency: float = 0.0,
        last_n: int = -1,
        counts_prompt: bool = True,
    ) -> None:
        self._near = repetition
        self._far = 1 + (repetition - 1) * slope if repetition > 1 else repetition
        self._presence, self._frequency, self._last_n = presence, frequency, last_n
        self._counts_prompt = counts_prompt
        self._ids: list[int] = []

    def begin(self, prompt: Sequence[int]) -> None:
        self._ids = list(prompt) if self._counts_prompt else []

    def chosen(self, token: int) -> None:
        self._ids.append(token)

    def sample(self, candidates: Candidates) -> Candidates:
        recent = np.asarray(_last(self._ids, self._last_n), np.int64)
        if not recent.size:
            return candidates
        factors, counts = self._tables(recent, int(max(candidates.ids.max(), recent.max())) + 1)
        factor, count = factors[candidates.ids], counts[candidates.ids]
        scores = candidates.scores
        scores = np.where(scores <= 0, scores * factor, scores / factor)
        return candidates.with_scores(
            scores - self._presence * (count > 0) - self._frequency * count
        )

    def _tables(self, recent: NDArray[np.int64], size: int) -> tuple[Numbers, Numbers]:
        """Factor and count of each id below `size`."""
        middle = recent.size // 2
        factors = np.ones(size)
        factors[recent[:middle]] = self._far
        factors[recent[middle:]] = self._near
        counts = np.bincount(recent, minlength=size).astype(np.float64)
        return factors, counts


class RepeatedSequences:
    """DRY: an id that would go on with a sequence that stood there before is made less likely, by
    multiplier * base ** (length - allowed_length) from that length on (P. E. Weidmann 2024).

    Sequences do not reach over `breakers`, ids that are never penalised themselves. `last_n` -1
    means all ids, 0 none.
    """

    def __init__(
        self,
        *,
        multiplier: float,
        base: float = 1.75,
        allowed_length: int = 2,
        last_n: int = -1,
        breakers: Iterable[int] = (),
    ) -> None:
        self._multiplier, self._base = multiplier, base
        self._allowed_length, self._last_n = max(allowed_length, 0), last_n
        self._breakers = frozenset(breakers)
        self._ids = np.zeros(64, np.int64)
        self._lengths = np.zeros(64, np.int64)
        self._count = 0

    def begin(self, prompt: Sequence[int]) -> None:
        for token in prompt if self._last_n < 0 else _last(prompt, self._last_n):
            self.chosen(token)

    def chosen(self, token: int) -> None:
        """Keeps, for every place, how long a sequence that ends there also ends the text."""
        if self._count == self._ids.size:
            self._ids = np.resize(self._ids, 2 * self._count)
            self._lengths = np.resize(self._lengths, 2 * self._count)
        count = self._count
        before = np.concatenate(([0], self._lengths[: max(count - 1, 0)]))[:count]
        goes_on = (self._ids[:count] == token) & (token not in self._breakers)
        self._lengths[:count] = np.where(goes_on, before + 1, 0)
        self._ids[count] = token
        self._lengths[count] = 0
        self._count += 1

    def sample(self, candidates: Candidates) -> Candidates:
        first = 0 if self._last_n < 0 else max(0, self._count - self._last_n)
        places = np.arange(first, self._count - 1)
        lengths = np.minimum(self._lengths[places], places - first + 1)
        found = lengths >= max(self._allowed_length, 1)
        if not found.any():
            return candidates
        longest: dict[int, int] = {}
        for token, length in zip(self._ids[places[found] + 1], lengths[found], strict=True):
            if int(token) not in self._breakers:
                longest[int(token)] = max(longest.get(int(token), 0), int(length))
        return candidates.with_scores(candidates.scores - self._penalties(candidates, longest))

    def _penalties(self, candidates: Candidates, longest: dict[int, int]) -> Numbers:
        penalties = np.zeros(candidates.ids.size)
        for token, length in longest.items():
            with np.errstate(over="ignore"):
                grown = np.float64(self._base) ** (length - self._allowed_length)
            penalty = min(self._multiplier * float(grown), _LARGEST_PENALTY)
            penalties[candidates.ids == token] = penalty
        return penalties


class ExcludeTopChoices:
    """XTC, at random: with this probability, drawn anew for each id, the likeliest are left out."""

    def __init__(self, *, probability: float, threshold: float, seed: tuple[int, ...]) -> None:
        self._probability, self._threshold = probability, threshold
        self._random = np.random.default_rng(seed)

    def begin(self, prompt: Sequence[int]) -> None:
        pass

    def chosen(self, token: int) -> None:
        pass

    def sample(self, candidates: Candidates) -> Candidates:
        if self._random.random() >= self._probability:
            return candidates
        return filters.exclude_top_choices(candidates, self._threshold)


class Mirostat:
    """Mirostat 2: what is too surprising is left out, and the bound moves so that the surprise of
    what is chosen stays near `target` bits (Basu et al. 2021)."""

    def __init__(self, *, target: float, rate: float) -> None:
        self._target, self._rate = target, rate
        self._most = 2 * target
        self._left: Candidates | None = None

    def begin(self, prompt: Sequence[int]) -> None:
        pass

    def sample(self, candidates: Candidates) -> Candidates:
        self._left = filters.mirostat(candidates, self._most)
        return self._left

    def chosen(self, token: int) -> None:
        if self._left is None or token not in self._left.ids:
            return
        [share] = self._left.probabilities[self._left.ids == token]
        self._most -= self._rate * (float(-np.log2(share)) - self._target)


def _last(ids: Sequence[int], count: int) -> Sequence[int]:
    return ids if count < 0 else ids[max(0, len(ids) - count) :]
