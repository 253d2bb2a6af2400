from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bluejay.text.suggestions import suggest
from bluejay.text.word_search import _heaviest_first
from text.test_suggestions import FakePrefix, RandomModel, random_model, tiny_tokenizer


@given(st.lists(st.sampled_from([0.0, 1e-9, 0.25, 0.5, 0.75]), max_size=300))
def test_the_heaviest_come_first_and_equal_ones_in_order(masses: list[float]) -> None:
    expected = sorted(range(len(masses)), key=lambda place: -masses[place])
    assert list(_heaviest_first(np.array(masses, np.float64))) == expected


@dataclass
class Foreseeing(RandomModel):
    """Hears what may be asked next."""

    reads_at_once: ClassVar[int] = 4
    foreseen: list[tuple[int, ...]] = field(default_factory=list, init=False)
    asked: list[tuple[int, ...]] = field(default_factory=list, init=False)

    def branch_first(self, wanted: Sequence[tuple[Any, int]]) -> FakePrefix:
        first, *others = [(*prefix.ids, token) for prefix, token in wanted]
        self.asked.append(first)
        self.foreseen += others
        return self.at(first)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from(["", "a", "b'", "aé", " a"]))
def test_what_is_foreseen_changes_no_word(seed: int, text: str) -> None:
    plain = random_model(seed, text)
    model = Foreseeing(plain.config, seed, plain.longest)
    for max_calls in (1, 5, 30):
        expected = suggest(plain, tiny_tokenizer(), text, max_calls=max_calls)
        assert suggest(model, tiny_tokenizer(), text, max_calls=max_calls) == expected
    assert model.num_calls == plain.num_calls


def test_much_of_what_is_foreseen_is_asked() -> None:
    foreseen = right = 0
    for seed in range(20):
        plain = random_model(seed, "a")
        model = Foreseeing(plain.config, seed, plain.longest)
        suggest(model, tiny_tokenizer(), "a", max_calls=30)
        foreseen += len(set(model.foreseen))
        right += len(set(model.foreseen) & set(model.asked))
    assert foreseen > 100
    assert right == pytest.approx(foreseen, rel=0.5)
