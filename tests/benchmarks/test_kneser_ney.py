"""The n-gram yardstick equals the equations of Chen and Goodman 1998, written with dictionaries."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from kneser_ney import FALLBACK_DISCOUNT, KneserNey
from numpy.typing import NDArray

from golden_files import load_passage

Ngram = tuple[int, ...]


class Equations:
    """Interpolated Kneser-Ney, one n-gram at a time."""

    def __init__(self, tokens: Sequence[int], *, vocab_size: int, order: int) -> None:
        self.vocab_size, self.order = vocab_size, order
        self.counts: dict[int, Counter[Ngram]] = {order: Counter(ngrams(tokens, order))}
        for length in range(order - 1, 0, -1):
            preceding: dict[Ngram, set[int]] = defaultdict(set)
            for first, *rest in ngrams(tokens, length + 1):
                preceding[tuple(rest)].add(first)
            self.counts[length] = Counter({ngram: len(x) for ngram, x in preceding.items()})
        self.following: dict[Ngram, list[int]] = defaultdict(list)
        for counts in self.counts.values():
            for ngram, count in counts.items():
                self.following[ngram[:-1]].append(count)

    def discount(self, length: int) -> float:
        values = list(self.counts[length].values())
        once, twice = values.count(1), values.count(2)
        return once / (once + 2 * twice) if once else FALLBACK_DISCOUNT

    def probability(self, token: int, context: Ngram) -> float:
        length = len(context) + 1
        shorter = self.probability(token, context[1:]) if context else 1 / self.vocab_size
        following = self.following[context]
        if not following:
            return shorter
        discount = self.discount(length)
        kept = max(self.counts[length][*context, token] - discount, 0)
        return (kept + discount * len(following) * shorter) / sum(following)

    def log_probabilities(self, tokens: Sequence[int]) -> list[float]:
        reach = self.order - 1
        return [
            math.log(self.probability(tokens[i], tuple(tokens[max(0, i - reach) : i])))
            for i in range(1, len(tokens))
        ]


def ngrams(tokens: Sequence[int], length: int) -> list[Ngram]:
    return [tuple(tokens[i : i + length]) for i in range(len(tokens) - length + 1)]


def random_ids(count: int, *, vocab_size: int, seed: int) -> NDArray[np.int32]:
    """Ids of which few are frequent, so that n-grams of every length occur again."""
    draws = np.random.default_rng(seed).exponential(vocab_size / 8, count)
    return np.minimum(draws, vocab_size - 1).astype(np.int32)


def text_ids(text: str) -> NDArray[np.int32]:
    return np.frombuffer(text.encode(), np.uint8).astype(np.int32)


def assert_same(
    training: NDArray[np.int32], scored: NDArray[np.int32], size: int, order: int
) -> None:
    model = KneserNey.fit(training, vocab_size=size, order=order)
    expected = Equations(training.tolist(), vocab_size=size, order=order)
    discounts = [expected.discount(length) for length in range(1, order + 1)]
    assert [level.discount for level in model.levels] == discounts
    found = model.log_probabilities(scored)
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, expected.log_probabilities(scored.tolist()), rtol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("size", [3, 40, 8192])
def test_random_ids_score_as_the_equations_say(size: int, order: int) -> None:
    training = random_ids(1500, vocab_size=size, seed=order)
    scored = random_ids(300, vocab_size=size, seed=100 + order)
    # Ids that training never saw, and a stretch that it did.
    scored = np.concatenate([scored, np.arange(size - 3, size), training[700:800]]).astype(np.int32)
    assert_same(training, scored, size, order)


def test_real_text_scores_as_the_equations_say() -> None:
    text = load_passage()
    middle = len(text) // 2
    assert_same(text_ids(text[:middle]), text_ids(text[middle:]), 256, 5)


@pytest.mark.parametrize("tokens", [[0, 1, 2, 3, 4], [7, 7, 7, 7, 7, 7, 7], [0, 1] * 9])
def test_tiny_streams_score_as_the_equations_say(tokens: list[int]) -> None:
    assert_same(np.array(tokens, np.int32), np.array([*tokens, 5, *tokens], np.int32), 8, 5)


def test_probabilities_sum_to_one_in_every_context() -> None:
    size = 60
    training = random_ids(3000, vocab_size=size, seed=1)
    model = KneserNey.fit(training, vocab_size=size)
    contexts = [training[i : i + length] for i in range(0, 2000, 97) for length in range(1, 7)]
    contexts += [random_ids(4, vocab_size=size, seed=seed) for seed in range(20)]
    contexts.append(np.array([size - 1] * 4, np.int32))
    for context in contexts:
        scores = [
            model.log_probabilities(np.append(context, token).astype(np.int32))[-1]
            for token in range(size)
        ]
        assert abs(math.fsum(map(math.exp, scores)) - 1) < 1e-12


def test_only_the_last_four_tokens_count() -> None:
    training = random_ids(3000, vocab_size=30, seed=1)
    model = KneserNey.fit(training, vocab_size=30)
    whole = model.log_probabilities(training[:50])
    assert model.log_probabilities(training[10:15])[-1] == whole[13]
    assert model.log_probabilities(training[11:15])[-1] != whole[13]
    assert len(model.log_probabilities(training[:1])) == 0


def test_pieces_are_one_stream_whatever_their_type() -> None:
    training = random_ids(3000, vocab_size=30, seed=1)
    pieces = [training[:1000].astype(np.uint16), training[1000:1003], training[1003:]]
    scores = [
        KneserNey.fit(given, vocab_size=30).log_probabilities(training)
        for given in (training, training.astype(np.uint16), pieces)
    ]
    assert np.array_equal(scores[0], scores[1])
    assert np.array_equal(scores[0], scores[2])


@pytest.mark.parametrize(
    ("tokens", "message"),
    [([0, 1, 2, 3], "4 tokens hold no n-gram of 5"), ([0, 1, 2, 3, 9], "Ids 0 to 9 do not lie")],
)
def test_streams_that_cannot_be_counted_are_refused(tokens: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        KneserNey.fit(np.array(tokens, np.int32), vocab_size=8)
