"""Suggestions of a model that remembers, against those of its runner: equal, to the bit."""

from collections.abc import Sequence
from typing import Any

import pytest

import bluejay
from bluejay.generation import runner as runner_module
from bluejay.generation.runner import Runner
from bluejay.kernels.library import cpu_library
from bluejay.runs.language_model import LanguageModel
from bluejay.runs.typed_model import TypedModel
from bluejay.text.next_tokens import Asking
from bluejay.text.suggestions import suggest
from bluejay.text.word_search import WordSearch

TYPED = "The sea was calm, and didn't see the isl"


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    return bluejay.load("bluejay-tiny")


def test_every_key_gets_the_words_of_the_runner(tiny: LanguageModel) -> None:
    typed = TypedModel(tiny.runner, most=128)
    others = typed.of_tenant("another")
    found = []
    for end in range(len(TYPED) + 1):
        expected = suggest(tiny.runner, tiny.tokenizer, TYPED[:end], k=3)
        assert suggest(typed, tiny.tokenizer, TYPED[:end], k=3) == expected
        if end % 9 == 0:
            assert suggest(others, tiny.tokenizer, TYPED[:end], k=3) == expected
        found.append(expected)
    assert any(item.completes for item in found[-1])
    # Again, and backwards, as when letters are rubbed out.
    for end in range(len(TYPED), 0, -1):
        assert suggest(typed, tiny.tokenizer, TYPED[:end], k=3) == found[end]


class _LeftError(Exception):
    pass


class Leaving:
    """A model whose user leaves in the middle of a search."""

    reads_at_once = 4

    def __init__(self, model: TypedModel, *, after: int) -> None:
        self.config, self._model, self._left = model.config, model, after

    def start(self, ids: Sequence[int], *, reserve: int = 0) -> Any:
        return self._model.start(ids, reserve=reserve)

    def branch(self, prefix: Any, token: int) -> Any:
        return self.branch_first([(prefix, token)])

    def branch_first(self, wanted: Sequence[tuple[Any, int]]) -> Any:
        self._left -= 1
        if self._left < 0:
            raise _LeftError
        return self._model.branch_first(wanted)


def test_a_search_that_is_left_takes_nothing_from_the_next(tiny: LanguageModel) -> None:
    typed = TypedModel(tiny.runner, most=128)
    text = "Once upon a time the kin"
    for after in (0, 1, 2, 3):
        with pytest.raises(_LeftError):
            suggest(Leaving(typed, after=after), tiny.tokenizer, text, k=3)
    expected = suggest(tiny.runner, tiny.tokenizer, text, k=3)
    assert suggest(typed, tiny.tokenizer, text, k=3) == expected


def test_where_kernels_are_missing_the_runner_is_asked(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_module, "cpu_library", lambda: None)
    plain = Runner(tiny.runner.params, config=tiny.config)
    typed = TypedModel(plain, most=128)
    expected = suggest(plain, tiny.tokenizer, "I lo", k=3)
    assert suggest(typed, tiny.tokenizer, "I lo", k=3) == expected
    assert suggest(typed.of_tenant("a"), tiny.tokenizer, "I lo", k=3) == expected


@pytest.mark.skipif(cpu_library() is None, reason="the kernels are not built")
def test_the_next_letter_of_a_word_asks_the_model_less(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    searches: list[int] = []
    run = WordSearch.run

    def spy(self: WordSearch, **bounds: Any) -> Asking[None]:
        yield from run(self, **bounds)
        searches.append(self.num_calls)

    monkeypatch.setattr(WordSearch, "run", spy)
    typed = TypedModel(tiny.runner, most=128)
    memory = typed._memory
    assert memory is not None
    for end in range(1, len(TYPED) + 1):
        suggest(typed, tiny.tokenizer, TYPED[:end], k=3)
    assert 2 * memory.num_calls < sum(searches)
    before = memory.num_calls
    suggest(typed, tiny.tokenizer, TYPED, k=3)
    assert memory.num_calls == before
