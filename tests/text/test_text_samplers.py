from collections.abc import Sequence

import numpy as np
import pytest

from bluejay.generation.candidates import Candidates
from bluejay.generation.sampler_chain import SamplerChain
from bluejay.text.text_samplers import BannedStrings, Infill, repeated_sequences
from bluejay.vocab.gpt2 import gpt2_tokenizer
from tokenizers_for_tests import smollm2_tokenizer


def token(text: str) -> int:
    [found] = gpt2_tokenizer().encode(text)
    return found


def choices(shares: dict[str, float]) -> Candidates:
    ids = np.asarray([token(text) for text in shares])
    order = np.argsort(ids)
    return Candidates(ids=ids[order], scores=np.log(np.asarray(list(shares.values())))[order])


def texts(candidates: Candidates) -> dict[str, float]:
    names = [gpt2_tokenizer().decode([int(i)]) for i in candidates.ids]
    return dict(zip(names, candidates.probabilities, strict=True))


@pytest.mark.parametrize("banned", ["a mixture of", "tapestry", "é!", "OF", "e"])
@pytest.mark.parametrize("tokenizer", [gpt2_tokenizer(), smollm2_tokenizer()])
def test_a_banned_text_never_comes_whatever_is_drawn(banned: str, tokenizer: object) -> None:
    """The likeliest way to write it is always tried first, then a random one."""
    assert isinstance(tokenizer, type(gpt2_tokenizer()))
    generator = np.random.default_rng(0)
    allowed = tokenizer.sampleable_mask(tokenizer.vocab_size)
    wanted = tokenizer.encode(f" {banned}") + tokenizer.encode(banned)
    prompt = tokenizer.encode("This is a mixture")
    chain = SamplerChain([BannedStrings(tokenizer, [banned])], prompt, allowed=allowed)
    ids: list[int] = []
    for step in range(100):
        logits = generator.normal(size=(1, allowed.size)).astype(np.float32)
        logits[0, wanted] += 30
        logits[0, wanted[step % len(wanted)]] += 30
        ids.append(int(chain.combine(logits).argmax()))
        chain.accept(ids[-1])
    assert len(set(ids)) > 1
    before = tokenizer.decode(prompt, skip_special=True)
    written = tokenizer.decode(prompt + ids, skip_special=True)
    assert written.lower().count(banned.lower()) == before.lower().count(banned.lower())


def test_a_ban_holds_only_for_what_it_names() -> None:
    stage = BannedStrings(gpt2_tokenizer(), ["understanding"])
    stage.begin(gpt2_tokenizer().encode("the under"))
    found = stage.sample(choices({"standing": 0.5, "stand": 0.3, " the": 0.2}))
    assert set(texts(found)) == {"stand", " the"}
    stage.chosen(token("stand"))
    found = stage.sample(choices({"ing": 0.5, "ings": 0.3, "s": 0.2}))
    assert set(texts(found)) == {"s"}


def test_a_ban_of_all_that_may_come_does_not_hold() -> None:
    stage = BannedStrings(gpt2_tokenizer(), ["a"])
    stage.begin([])
    only = choices({"a": 1.0})
    assert list(stage.sample(only).ids) == list(only.ids)


def dry_penalties(history: str, breakers: Sequence[str]) -> list[str]:
    """What would go on with a sequence of `history`."""
    ids = gpt2_tokenizer().encode(history)
    stage = repeated_sequences(
        gpt2_tokenizer(),
        multiplier=1,
        base=2,
        allowed_length=2,
        last_n=-1,
        breakers=breakers,
    )
    stage.begin(ids)
    before = Candidates(ids=np.arange(50257), scores=np.zeros(50257))
    after = stage.sample(before)
    return [gpt2_tokenizer().decode([int(i)]) for i in after.ids[after.scores < 0]]


def test_sequences_end_at_tokens_that_have_a_breaker_in_them() -> None:
    text = "Ann: I see a car today. Ann: I see a"
    assert dry_penalties(text, []) == [" car"]
    assert dry_penalties(text, ["\n", ":"]) == [" car"]
    # Only " a" is left behind the breaker, which is shorter than two.
    assert dry_penalties(text, [" see"]) == []
    # The token that would follow is itself a breaker.
    assert dry_penalties("Ann: I see Bo: Ann: I see Bo", [":"]) == []


def test_infill_ends_where_the_end_is_likely_enough() -> None:
    stage = Infill(gpt2_tokenizer(), [50256])
    end = gpt2_tokenizer().decode([50256])
    ids = np.asarray([token(" a"), token(" b"), 50256])
    # 3 * 3 * 0.12 is more than 0.88, and 3 * 3 * 0.08 less than 0.92.
    likely = Candidates(ids=ids, scores=np.log([0.6, 0.28, 0.12]))
    assert set(texts(stage.sample(likely))) == {end}
    unlikely = Candidates(ids=ids, scores=np.log([0.6, 0.32, 0.08]))
    assert set(texts(stage.sample(unlikely))) == {" a", " b"}


def test_infill_merges_what_begins_alike_and_drops_the_improbable() -> None:
    """Like the example of llama.cpp's header."""
    stage = Infill(gpt2_tokenizer(), [50256])
    found = stage.sample(choices({"m": 0.5, "ma": 0.2, "mar": 0.1, "d": 0.2}))
    # m has 0.8 of it, d 0.2, which is less than a third.
    assert texts(found) == {"m": pytest.approx(1.0)}
    found = stage.sample(choices({"x": 0.45, "y": 0.45, "z": 0.1}))
    assert texts(found) == {"x": pytest.approx(0.5), "y": pytest.approx(0.5)}


def test_infill_ends_when_nothing_is_probable() -> None:
    stage = Infill(gpt2_tokenizer(), [50256])
    ids = np.asarray([*(token(c) for c in "abcdefghij"), 50256])
    flat = Candidates(ids=ids, scores=np.log([0.1] * 10 + [1e-9]))
    assert list(stage.sample(flat).ids) == [50256]
    without = flat.keep(flat.ids != 50256)
    assert stage.sample(without).ids.size == 1
