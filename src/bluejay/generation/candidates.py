"""The ids that may still be chosen, and what takes some of them away: samplers on the host.

They are those that writers of fiction set in KoboldAI's and llama.cpp's clients. Each is computed
in float64 from all candidates left, whatever order a client asks for. Starts without JAX.

Axes: V vocabulary  C candidates that are left
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Numbers = NDArray[np.float64]

# Most of the mass lies here, so that most filters need not order a whole vocabulary.
_HEAD = 1024
# Less curvature than this is rounding.
_FLAT = 1e-6


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """`ids` [C] with their `scores` [C], natural logarithms up to a constant; at least one."""

    ids: Ids
    scores: Numbers

    @classmethod
    def of(cls, logits: NDArray[np.float32], allowed: NDArray[np.bool_]) -> "Candidates":
        """The allowed ids of a row of logits, both [V]."""
        ids = np.flatnonzero(allowed & (logits > -np.inf))
        return cls(ids=ids, scores=logits[ids].astype(np.float64))

    def row(self, size: int) -> NDArray[np.float32]:
        """[V] float32: -inf for every id that is no candidate any more."""
        row = np.full(size, -np.inf, np.float32)
        row[self.ids] = self.scores
        return row

    def keep(self, chosen: NDArray[np.bool_] | NDArray[np.int64]) -> "Candidates":
        """Those candidates only, by mask or by place."""
        return Candidates(ids=self.ids[chosen], scores=self.scores[chosen])

    def with_scores(self, scores: Numbers) -> "Candidates":
        """The same ids, scored otherwise."""
        return replace(self, scores=scores)

    @property
    def probabilities(self) -> Numbers:
        """[C], together 1."""
        weights = np.exp(self.scores - self.scores.max())
        shares: Numbers = weights / weights.sum()
        return shares

    def ordered(self) -> "Candidates":
        """The most probable first; of equals the lower id."""
        return self.keep(np.lexsort((self.ids, -self.scores)))

    def _head(self, count: int) -> "Candidates":
        """At least the `count` most probable, in order."""
        if self.ids.size <= count:
            return self.ordered()
        least = np.partition(self.scores, -count)[-count]
        return self.keep(self.scores >= least).ordered()


Sampler = Callable[[Candidates], Candidates]


def add_bias(bias: Mapping[int, float]) -> Sampler:
    """Adds to the scores of some ids; of what is no candidate, nothing."""
    values = np.zeros(1 + max(bias, default=-1))
    values[list(bias)] = list(bias.values())

    def sample(candidates: Candidates) -> Candidates:
        known = candidates.ids < values.size
        added = np.zeros(candidates.ids.size)
        added[known] = values[candidates.ids[known]]
        return candidates.with_scores(candidates.scores + added)

    return sample


def top_k(candidates: Candidates, k: int) -> Candidates:
    """The k most probable; all for 0."""
    if k <= 0 or k >= candidates.ids.size:
        return candidates
    return candidates._head(k).keep(np.arange(k))


def top_p(candidates: Candidates, p: float) -> Candidates:
    """The fewest, most probable first, whose probability reaches p; all for 1."""
    if p >= 1:
        return candidates
    total = np.exp(candidates.scores - candidates.scores.max()).sum()
    for head in (candidates._head(_HEAD), candidates.ordered()):
        reached = np.cumsum(np.exp(head.scores - head.scores[0])) >= p * total
        if reached.any():
            return head.keep(np.arange(reached.argmax() + 1))
    return candidates


def min_p(candidates: Candidates, p: float) -> Candidates:
    """Those at least p times as probable as the most probable one; all for 0."""
    if p <= 0:
        return candidates
    return candidates.keep(candidates.scores >= candidates.scores.max() + np.log(min(p, 1.0)))


def typical(candidates: Candidates, p: float) -> Candidates:
    """Those nearest in surprise to the entropy until their probability reaches p; all for 1
    (Meister et al. 2022)."""
    if p >= 1:
        return candidates
    shares = candidates.probabilities
    surprise = -np.log(np.maximum(shares, np.finfo(np.float64).tiny))
    nearest = np.argsort(np.abs(surprise - (shares * surprise).sum()), kind="stable")
    beyond = np.cumsum(shares[nearest]) > p
    return candidates.keep(nearest[: beyond.argmax() + 1]) if beyond.any() else candidates


def tail_free(candidates: Candidates, z: float) -> Candidates:
    """Those before the tail, which begins where more than z of the curvature of the ordered
    probabilities lies before; all for 1 (P. Phelps, Tail Free Sampling; cut as llama.cpp did)."""
    if z >= 1 or candidates.ids.size <= 2:
        return candidates
    found = candidates.ordered()
    curvature = np.abs(np.diff(found.probabilities, n=2))
    if curvature.sum() <= _FLAT:
        curvature = np.ones_like(curvature)
    beyond = np.cumsum(curvature / curvature.sum()) > z
    return found.keep(np.arange(max(1, int(beyond.argmax())))) if beyond.any() else candidates


def top_a(candidates: Candidates, a: float) -> Candidates:
    """Those at least as probable as `a` times the square of the largest probability; all for 0."""
    if a <= 0:
        return candidates
    shares = candidates.probabilities
    largest = shares.max()
    return candidates.keep(shares >= min(a * largest * largest, largest))


def top_n_sigma(candidates: Candidates, n: float) -> Candidates:
    """Those whose score is within n standard deviations of the largest; all for 0 or less
    (Tang et al. 2024)."""
    if n <= 0:
        return candidates
    scores = candidates.scores
    return candidates.keep(scores >= scores.max() - n * scores.std())


def exclude_top_choices(candidates: Candidates, threshold: float) -> Candidates:
    """XTC: of those at least as probable as the threshold all but the least probable are left out
    (P. E. Weidmann 2024)."""
    shares = candidates.probabilities
    above = np.flatnonzero(shares >= threshold)
    if above.size < 2:
        return candidates
    kept = np.ones(shares.size, np.bool_)
    kept[above] = False
    # Of equals the one with the higher id, which comes last in order.
    kept[above[np.lexsort((-candidates.ids[above], shares[above]))[0]]] = True
    return candidates.keep(kept)


def mirostat(candidates: Candidates, most_surprise: float) -> Candidates:
    """Those with a surprise of at most so many bits, at least the most probable one."""
    shares = candidates.probabilities
    kept = -np.log2(np.maximum(shares, np.finfo(np.float64).tiny)) <= most_surprise
    kept[shares.argmax()] = True
    return candidates.keep(kept)


def scale(candidates: Candidates, temperature: float) -> Candidates:
    """Divides the scores; 0 leaves only the best, of equals the lower id."""
    if temperature <= 0:
        best = candidates.ids[candidates.scores == candidates.scores.max()].min()
        return candidates.keep(candidates.ids == best)
    return candidates.with_scores(candidates.scores / temperature)


def dynamic_temperature(low: float, high: float, exponent: float) -> Sampler:
    """A temperature between `low` and `high` that grows with the entropy, as a share of the
    largest that so many candidates can have, to the power of `exponent` (kalomaze 2023)."""

    def sample(candidates: Candidates) -> Candidates:
        shares = candidates.probabilities
        if shares.size < 2:
            return scale(candidates, low)
        used = shares[shares > 0]
        share = float(-(used * np.log(used)).sum() / np.log(shares.size))
        return scale(candidates, low + (high - low) * min(max(share, 0.0), 1.0) ** exponent)

    return sample


def smooth(factor: float, curve: float = 1.0) -> Sampler:
    """Bends the scores down from the largest one by a parabola, and by a cubic as far as `curve`
    is not 1 (quadratic sampling, kalomaze 2024)."""

    def sample(candidates: Candidates) -> Candidates:
        largest = candidates.scores.max()
        distance = candidates.scores - largest
        quadratic, cubic = (3 - curve) / 2 * factor, (curve - 1) / 2 * factor
        return candidates.with_scores(largest - quadratic * distance**2 + cubic * distance**3)

    return sample
