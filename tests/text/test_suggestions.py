"""Against whole distributions over texts, where every probability can be summed by hand."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from bluejay.core.errors import DataError, UsageError
from bluejay.model.config import DecoderConfig, PositionConfig
from bluejay.text.suggestions import Suggestion, suggest
from bluejay.text.typed_text import typed_text
from bluejay.vocab.gpt2 import gpt2_tokenizer
from bluejay.vocab.roles import assign_roles
from bluejay.vocab.tokenizer import Tokenizer


def config_of(vocab_size: int, context_length: int = 64) -> DecoderConfig:
    return DecoderConfig(
        num_layers=1, embed_dim=2, num_heads=1, head_dim=2, num_kv_heads=1, feed_forward_dim=2,
        vocab_size=vocab_size, context_length=context_length,
        position=PositionConfig(rotary_dim=2),
    )  # fmt: skip


@dataclass(frozen=True)
class FakePrefix:
    ids: tuple[int, ...]
    logits: np.ndarray


@dataclass
class FakeModel:
    """A model whose next-token probabilities are a function of the ids before."""

    config: DecoderConfig
    num_calls: int = field(default=0, init=False)

    def probabilities(self, ids: tuple[int, ...]) -> np.ndarray:
        raise NotImplementedError

    def start(self, ids: Sequence[int], *, reserve: int = 0) -> FakePrefix:
        assert len(ids)
        assert len(ids) + reserve <= self.config.context_length
        return self.at(tuple(ids))

    def branch(self, prefix: FakePrefix, token: int) -> FakePrefix:
        return self.at((*prefix.ids, token))

    def at(self, ids: tuple[int, ...]) -> FakePrefix:
        self.num_calls += 1
        with np.errstate(divide="ignore"):
            logits = np.log(self.probabilities(ids)).astype(np.float32)
        # A row without a token, which must never count however large it is.
        logits[-1] = 50.0
        return FakePrefix(ids, logits)


# ---- random models over a tiny vocabulary ----

TOKENS = ["a", "b", "Ġ", "Ġa", "ab", "'", ".", "Ã", "©", "<|endoftext|>"]
END = 9


@cache
def tiny_tokenizer() -> Tokenizer:
    vocab = {name: number for number, name in enumerate(TOKENS[:END])}
    model = tokenizers.models.BPE(vocab=vocab, merges=[("Ġ", "a"), ("a", "b")])
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens([TOKENS[END]])
    return Tokenizer(backend, roles=assign_roles({"eos": END}, id_of=backend.token_to_id))


@dataclass
class RandomModel(FakeModel):
    """Spread differently after every text; texts end `depth` tokens after the head."""

    seed: int
    longest: int

    def probabilities(self, ids: tuple[int, ...]) -> np.ndarray:
        found = np.zeros(len(TOKENS) + 1)
        if len(ids) >= self.longest:
            found[END] = 1.0
        else:
            random = np.random.default_rng([self.seed, *ids])
            found[:-1] = random.dirichlet(np.full(len(TOKENS), 0.4))
        return found


def texts(model: RandomModel, ids: tuple[int, ...], tail: bytes) -> Iterator[tuple[bytes, float]]:
    """Every text after `ids` that begins with `tail`, once per tokenization, and its mass."""
    logits = model.at(ids).logits[:-1].astype(np.float64)
    masses = np.exp(logits) / np.exp(logits).sum()
    if not tail:
        yield b"", masses[END]
    for token in np.flatnonzero(masses[:END]):
        data = tiny_tokenizer().token_bytes(int(token))
        if data.startswith(tail) or tail.startswith(data):
            for text, mass in texts(model, (*ids, int(token)), tail[len(data) :]):
                yield data + text, masses[token] * mass


def by_definition(model: RandomModel, prefix: str) -> dict[str, float]:
    """Next words, or completions, by looking at whole texts."""
    word = r"[abé]+(?:'[abé]+)*"
    typed = typed_text(tiny_tokenizer(), prefix)
    base = typed.word.rstrip("'")
    completions, following = Counter(), Counter()
    for data, mass in texts(model, typed.head, typed.tail):
        rest = data[len(typed.tail) :].decode(errors="replace")
        whole = re.match(word, typed.word + rest)
        if base and whole and whole.end() > len(base):
            completions[whole.group()] += mass
        else:
            completions[""] += mass
            after = re.match(rf"\s*({word})", rest)
            following[after.group(1) if after else ""] += mass
    is_next = 2 * completions[""] >= completions.total()
    chosen = following if is_next else completions
    return {w: mass / chosen.total() for w, mass in chosen.items() if w and mass}


PREFIXES = ["", "a", "a ", "b'", "ab", "a.", "aé", " a", "b  ", "bab", "é'b"]
seeds = st.integers(0, 1 << 32)
prefixes = st.sampled_from(PREFIXES)


def random_model(seed: int, prefix: str) -> RandomModel:
    return RandomModel(config_of(11), seed, len(typed_text(tiny_tokenizer(), prefix).head) + 4)


@settings(max_examples=15, deadline=None)
@given(seeds, prefixes)
def test_with_unbounded_calls_equals_the_definition(seed: int, prefix: str) -> None:
    model = random_model(seed, prefix)
    found = suggest(model, tiny_tokenizer(), prefix, k=10_000, max_calls=None, least=0.0)
    assert {item.word: item.probability for item in found} == pytest.approx(
        by_definition(model, prefix), rel=1e-5, abs=1e-12
    )


@settings(max_examples=50, deadline=None)
@given(seeds, prefixes, st.integers(1, 20), st.integers(1, 8))
def test_probabilities_of_distinct_words_in_order_within_the_calls(
    seed: int, prefix: str, max_calls: int, k: int
) -> None:
    model = random_model(seed, prefix)
    found = suggest(model, tiny_tokenizer(), prefix, k=k, max_calls=max_calls)
    probabilities = [item.probability for item in found]
    assert len(found) <= k
    assert len({item.word for item in found}) == len(found)
    assert probabilities == sorted(probabilities, reverse=True)
    assert all(0.0 < probability <= 1.0 for probability in probabilities)
    assert sum(probabilities) <= 1.0 + 1e-12
    # A path longer than the kept caches costs its ancestors again, four tokens at most.
    assert model.num_calls <= max_calls + 4


@settings(max_examples=15, deadline=None)
@given(seeds, prefixes, st.integers(1, 40))
def test_what_few_calls_find_is_a_lower_bound(seed: int, prefix: str, max_calls: int) -> None:
    # After white space and punctuation the reading does not depend on the number of calls.
    if typed_text(tiny_tokenizer(), prefix).word:
        prefix += "."
    model = random_model(seed, prefix)
    exact = by_definition(model, prefix)
    for item in suggest(model, tiny_tokenizer(), prefix, k=50, max_calls=max_calls, least=0.0):
        assert item.probability <= exact[item.word] * (1 + 1e-5)


# ---- a language of a few weighted texts, in GPT-2's tokens ----


@dataclass
class Corpus(FakeModel):
    """Documents with weights, each in all the tokenizations that are given for it."""

    documents: dict[tuple[int, ...], float]

    def probabilities(self, ids: tuple[int, ...]) -> np.ndarray:
        found = np.full(self.config.vocab_size, 1e-12)
        for document, weight in self.documents.items():
            if document[: len(ids)] == ids:
                found[document[len(ids)]] += weight
        return found / found.sum()


def corpus(weights: dict[str, float], *more: tuple[list[int], float]) -> Corpus:
    tokenizer = gpt2_tokenizer()
    documents = {
        (50256, *tokenizer.encode(text), 50256): float(weight) for text, weight in weights.items()
    }
    documents |= {(50256, *ids, 50256): weight for ids, weight in more}
    return Corpus(config_of(50_300), documents)


def words(model: FakeModel, text: str, **options: int) -> list[tuple[str, float]]:
    found = suggest(model, gpt2_tokenizer(), text, **options)
    return [(item.word, round(item.probability, 6)) for item in found]


def test_a_typed_word_that_mostly_ends_is_followed_by_next_words() -> None:
    model = corpus({"How does it": 5, "How to": 3, "However, it": 2})
    assert words(model, "How") == [("does", 0.625), ("to", 0.375)]
    assert words(model, "How ") == [("does", 0.625), ("to", 0.375)]


def test_a_typed_word_that_mostly_goes_on_is_completed() -> None:
    model = corpus({"How to": 3, "However, it": 5, "How's it": 2})
    assert words(model, "How") == [("However", 0.5), ("How's", 0.2)]
    assert suggest(model, gpt2_tokenizer(), "How")[0] == Suggestion(
        word="However", probability=pytest.approx(0.5), appended="ever", completes=True
    )


def test_half_typed_words_are_healed() -> None:
    model = corpus({"I love you": 6, "I look up": 3, "I like you": 5, "I lo.": 1})
    assert words(model, "I lo") == [("love", 0.6), ("look", 0.3)]


def test_a_typed_space_belongs_to_the_next_word() -> None:
    model = corpus({"I love you": 6, "I lovely day": 4, "I love, too": 5})
    assert words(model, "I love ") == [("you", 1.0)]
    # Without it the comma is possible, and no word.
    assert words(model, "I love") == [("you", round(6 / 11, 6))]


def test_all_tokenizations_of_a_word_are_summed() -> None:
    encode = gpt2_tokenizer().encode
    pieces = [*encode("I"), *encode(" lo"), *encode("ve")]
    newline = [*encode("I\n"), *encode("love")]
    model = corpus({"I love": 4, "I am": 4}, (pieces, 1.0), (newline, 1.0))
    assert words(model, "I") == [("love", 0.6), ("am", 0.4)]


def test_words_of_several_tokens_and_of_several_bytes_come_whole() -> None:
    weights = {"a naïveté!": 4, "a 日本語。": 3, "a 👍🏽": 2, "a foo_bar": 1}
    assert words(corpus(weights), "a") == [
        ("naïveté", 0.4),
        ("日本語", 0.3),
        ("👍🏽", 0.2),
        ("foo_bar", 0.1),
    ]


def test_apostrophes_belong_to_words_and_both_kinds_are_one() -> None:
    model = corpus({"We don't": 4, "We don’t": 3, "We do not": 3})
    assert words(model, "We") == [("don't", 0.7), ("do", 0.3)]
    assert words(model, "We don") == [("don't", 1.0)]


def test_composed_and_decomposed_spellings_are_one_word_and_cases_are_two() -> None:
    model = corpus({"a café": 4, "a cafe\u0301": 3, "a Café": 3})
    assert words(model, "a") == [("café", 0.7), ("Café", 0.3)]


def test_punctuation_and_the_end_of_the_text_are_no_words() -> None:
    model = corpus({"Yes": 3, "Yes, sir": 2, "Yes sir": 5})
    assert words(model, "Yes") == [("sir", 0.5)]


def test_appended_text_has_the_space_that_the_word_needs() -> None:
    model = corpus({"(see below": 5, "(a": 2, "Go home": 3})
    tokenizer = gpt2_tokenizer()
    assert suggest(model, tokenizer, "(")[0].appended == "see"
    assert suggest(model, tokenizer, "Go")[0].appended == " home"
    assert suggest(model, tokenizer, "Go ")[0].appended == "home"
    assert suggest(model, tokenizer, "Go h")[0].appended == "ome"


def test_stops_when_no_path_left_matters() -> None:
    model = corpus({f"a {chr(97 + n)}x": 2.0**-n for n in range(20)})
    words(model, "a ", k=2)
    assert model.num_calls < 8


def test_a_text_longer_than_the_context_keeps_its_end_and_its_document_start() -> None:
    model = corpus({"b" * 100: 1})
    model.documents = {}
    model.config = config_of(50_300, context_length=16)
    seen: list[Sequence[int]] = []
    start = model.start
    model.start = lambda ids, *, reserve=0: (seen.append(ids), start(ids, reserve=reserve))[1]  # type: ignore[method-assign]
    suggest(model, gpt2_tokenizer(), "one two three four five six seven eight nine ten ")
    assert seen == [(50256, *gpt2_tokenizer().encode(" four five six seven eight nine ten"))]


def test_impossible_requests_and_damaged_models_are_refused() -> None:
    model = corpus({"a b": 1})
    with pytest.raises(UsageError, match="at least 1, not 0"):
        suggest(model, gpt2_tokenizer(), "a", k=0)
    model.probabilities = lambda ids: np.full(50_300, np.nan)  # type: ignore[method-assign]
    with pytest.raises(DataError, match="nan as the largest logit"):
        suggest(model, gpt2_tokenizer(), "a")
