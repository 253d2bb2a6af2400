"""An interpolated Kneser-Ney n-gram model over token ids: the yardstick for trained models.

    python benchmarks/kneser_ney.py

measures fitting and scoring on random ids. The model is that of Chen and Goodman 1998 (TR-10-98,
section 2.8 and equation 21 interpolated), with one discount per order:

    p(w | c) = max(n(c w) - D, 0) / n(c .)  +  D t(c) / n(c .)  p(w | c without its first token)

n(c w) is the count of the n-gram in the highest order and, below it, the number of different
tokens that precede it; n(c .) is the sum over w and t(c) the number of w with n(c w) > 0. Under
the unigrams lies the uniform distribution, and a context never seen gives way to the shorter one.

N-grams form a trie of sorted numbers: the n-grams of length k are numbered in order, and one is
stored as (number of its first k - 1 tokens) * V + (last token). This holds any vocabulary and any
order in 64 bits, where five packed tokens of 13 bits would not fit.

Axes: n tokens  N n-grams of one length  M n-grams one token shorter, their contexts  V vocabulary
"""

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.integer]

# Where the formula gives nothing because no n-gram has a count of one: so in tiny texts, and among
# the unigrams of large ones. With a discount of 0 unseen tokens would be impossible.
FALLBACK_DISCOUNT = 0.5


@dataclass(frozen=True, kw_only=True)
class Level:
    """All n-grams of one length."""

    keys: NDArray[np.int64]  # N, sorted: context * V + last token
    counts: NDArray[np.int32]  # N, occurrences or different predecessors
    totals: NDArray[np.int32]  # M, sum of the counts of a context's n-grams
    types: NDArray[np.int32]  # M, how many of these counts are not zero
    discount: float

    def find(self, keys: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of each n-gram, -1 where there is none."""
        places = np.minimum(np.searchsorted(self.keys, keys), len(self.keys) - 1)
        return np.where(self.keys[places] == keys, places, -1)

    def interpolate(
        self, contexts: NDArray[np.int64], found: NDArray[np.int64], shorter: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Probabilities given contexts of this length, from those given one token less."""
        counts = np.where(found >= 0, self.counts[found], 0)
        totals = np.where(contexts >= 0, self.totals[contexts], 0)
        kept = np.maximum(counts - self.discount, 0.0)
        mixed = kept + self.discount * self.types[contexts] * shorter
        return np.where(totals > 0, mixed / np.maximum(totals, 1), shorter)


class KneserNey:
    """A fitted model. `levels[k - 1]` holds the n-grams of length k."""

    def __init__(self, levels: Sequence[Level], *, vocab_size: int) -> None:
        self.levels = tuple(levels)
        self.vocab_size = vocab_size

    @classmethod
    def fit(cls, tokens: Ids | Sequence[Ids], *, vocab_size: int, order: int = 5) -> Self:
        """Count the n-grams of one stream of ids, given whole or in pieces that follow each other.

        Order 5 takes 77 bytes of memory per token of books at its peak, 107 of random ids.
        """
        stream = tokens if isinstance(tokens, np.ndarray) else np.concatenate(list(tokens))
        _check(stream, vocab_size=vocab_size, order=order)
        # The empty n-gram, number 0, begins at every place and at the end.
        numbers = np.zeros(len(stream) + 1, np.int32)
        levels: list[Level] = []
        keys = np.zeros(1, np.int64)
        for length in range(1, order + 1):
            longer = _number_ngrams(numbers, stream[length - 1 :], vocab_size=vocab_size)
            if length > 1:
                preceded = np.bincount(longer.suffixes, minlength=len(keys))
                levels.append(_level(keys, preceded, contexts=num_contexts, vocab_size=vocab_size))
            num_contexts, keys, numbers = len(keys), longer.keys, longer.numbers
        levels.append(_level(keys, longer.counts, contexts=num_contexts, vocab_size=vocab_size))
        return cls(levels, vocab_size=vocab_size)

    def log_probabilities(self, tokens: Ids) -> NDArray[np.float64]:
        """[n - 1] natural logarithms of the probability of every token but the first.

        Each is given the tokens before it, as many as the order allows.
        """
        _check(tokens, vocab_size=self.vocab_size, order=1)
        numbers = np.zeros(len(tokens) + 1, np.int64)
        probabilities = np.full(len(tokens), 1.0 / self.vocab_size)
        for skipped, level in enumerate(self.levels[: len(tokens)]):
            contexts = numbers[:-1]
            numbers = level.find(contexts * self.vocab_size + tokens[skipped:])
            probabilities[skipped:] = level.interpolate(contexts, numbers, probabilities[skipped:])
        return np.log(probabilities[1:])


@dataclass(frozen=True, kw_only=True)
class NumberedNgrams:
    """The n-grams of one length in a stream."""

    keys: NDArray[np.int64]  # N, sorted
    counts: NDArray[np.int64]  # N, occurrences
    suffixes: NDArray[np.int32]  # N, number of the same without its first token
    numbers: NDArray[np.int32]  # by the place where one begins


def _number_ngrams(contexts: NDArray[np.int32], last: Ids, *, vocab_size: int) -> NumberedNgrams:
    """Number the n-grams that consist of the context at each place and the token behind it."""
    keys = contexts[:-1].astype(np.int64) * vocab_size + last
    order = np.argsort(keys)
    keys = keys[order]
    is_first = np.concatenate([[True], keys[1:] != keys[:-1]])
    firsts = np.flatnonzero(is_first)
    numbers = np.empty(len(keys), np.int32)
    numbers[order] = np.cumsum(is_first, dtype=np.int32) - 1
    return NumberedNgrams(
        keys=keys[firsts],
        counts=np.diff(firsts, append=len(keys)),
        suffixes=contexts[order[firsts] + 1],
        numbers=numbers,
    )


def _level(
    keys: NDArray[np.int64], counts: NDArray[np.int64], *, contexts: int, vocab_size: int
) -> Level:
    of = keys // vocab_size
    once, twice = np.count_nonzero(counts == 1), np.count_nonzero(counts == 2)
    return Level(
        keys=keys,
        counts=counts.astype(np.int32),
        # Sums of whole numbers below 2**53: exact in float64.
        totals=np.bincount(of, weights=counts, minlength=contexts).astype(np.int32),
        types=np.bincount(of[counts > 0], minlength=contexts).astype(np.int32),
        discount=float(once / (once + 2 * twice)) if once else FALLBACK_DISCOUNT,
    )


def _check(tokens: Ids, *, vocab_size: int, order: int) -> None:
    if len(tokens) < max(order, 1):
        raise ValueError(f"{len(tokens)} tokens hold no n-gram of {order}: give more.")
    if len(tokens) >= 2**31 or len(tokens) * vocab_size >= 2**63:
        raise ValueError(f"{len(tokens)} tokens are more than 32 bits number: give fewer.")
    low, high = int(tokens.min()), int(tokens.max())
    if low < 0 or high >= vocab_size:
        raise ValueError(f"Ids {low} to {high} do not lie below vocab_size {vocab_size}.")


def main() -> None:
    """Ids whose frequencies fall as 1 / rank: more different n-grams than any text has."""
    vocab_size, num_tokens, num_scored = 8192, 10_000_000, 1_000_000
    rng = np.random.default_rng(0)
    shares = 1.0 / np.arange(1, vocab_size + 1)
    ids = np.searchsorted(np.cumsum(shares / shares.sum()), rng.random(num_tokens + num_scored))
    tokens = np.minimum(ids, vocab_size - 1).astype(np.uint16)
    began = time.perf_counter()
    model = KneserNey.fit(tokens[:num_tokens], vocab_size=vocab_size)
    fitted = time.perf_counter()
    scores = model.log_probabilities(tokens[num_tokens:])
    scored = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"fit {num_tokens:,} ids, {len(model.levels[-1].keys):,} different 5-grams: "
        f"{fitted - began:.1f} s; score {num_scored:,}: {scored - fitted:.1f} s, "
        f"{-scores.mean():.3f} nats each; peak memory {peak:.2f} GiB"
    )


if __name__ == "__main__":
    main()
