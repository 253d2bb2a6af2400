"""Searches that run in turn on one thread: what they find, and in how many calls."""

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import pytest

import bluejay
from bluejay.core.errors import DataError
from bluejay.kernels.library import cpu_library
from bluejay.runs.language_model import LanguageModel
from bluejay.runs.typed_model import TypedModel
from bluejay.serving.searches import CancelledError, Search, Searches, SharedModel
from bluejay.text.next_tokens import Asking, NextTokens, Question, answer
from bluejay.text.suggestions import SearchBounds, Suggestion, suggest, suggesting
from serving.live_server import PATIENCE
from serving.table_models import Prefix, TableWords
from serving.text_server import small_tokenizer

TEXTS = ["the s", "a", "the se", "wh"]
BOUNDS = SearchBounds(k=4, max_calls=40)


@dataclass
class SharedTable(TableWords):
    """Several may ask it in turn; each common call is noted, and waits if the table is gated."""

    num_at_once: int = len(TEXTS)
    common: list[int] = field(default_factory=list)
    failing_call: int | None = None

    def of_tenant(self, tenant: str) -> NextTokens:
        return self

    def answers(self, asked: Sequence[tuple[str, Question]]) -> list[Prefix]:
        self.common.append(len(asked))
        if len(self.common) == self.failing_call:
            raise DataError("The weights are damaged.")
        return [answer(self, question) for _, question in asked]

    def recalled(self, tenant: str, question: Question) -> None:
        return None


def asking(text: str) -> Callable[[NextTokens], Asking[list[Suggestion]]]:
    return lambda model: suggesting(model, small_tokenizer(), text, BOUNDS)


def begin(searches: Searches, texts: Sequence[str]) -> list["Future[list[Suggestion]]"]:
    return [searches.submit(Search(asking=asking(text), tenant="a")) for text in texts]


def alone(text: str) -> list[Suggestion]:
    return suggest(TableWords(), small_tokenizer(), text, k=4, max_calls=40)


def held(table: SharedTable) -> tuple[Searches, Callable[[], None]]:
    """Searches of which the first thing asked waits, so that others join before it is answered."""
    searches = Searches(table)
    gate = threading.Event()
    searches._thread.submit(gate.wait, PATIENCE)
    return searches, gate.set


def test_several_at_once_find_what_each_finds_alone_in_fewer_calls() -> None:
    table = SharedTable()
    assert isinstance(table, SharedModel)
    searches, open_gate = held(table)
    found = begin(searches, TEXTS)
    open_gate()
    assert [future.result(PATIENCE) for future in found] == [alone(text) for text in TEXTS]
    assert max(table.common) == len(TEXTS)
    assert len(table.threads) == 1


def test_one_who_leaves_takes_no_other_along() -> None:
    table = SharedTable()
    searches, open_gate = held(table)
    leaving = Search(asking=asking("the s"), tenant="a")
    gone = searches.submit(leaving)
    others = begin(searches, TEXTS[1:])
    leaving.is_cancelled.set()
    open_gate()
    assert [future.result(PATIENCE) for future in others] == [alone(text) for text in TEXTS[1:]]
    with pytest.raises(CancelledError):
        gone.result(PATIENCE)
    assert begin(searches, ["a"])[0].result(PATIENCE) == alone("a")


def test_a_common_call_that_fails_fails_those_who_asked_and_the_next_works() -> None:
    table = SharedTable(failing_call=2)
    searches, open_gate = held(table)
    found = begin(searches, TEXTS)
    open_gate()
    for future in found:
        with pytest.raises(DataError, match="damaged"):
            future.result(PATIENCE)
    assert begin(searches, ["wh"])[0].result(PATIENCE) == alone("wh")


def test_a_text_that_cannot_be_read_fails_alone() -> None:
    def refuse(model: NextTokens) -> Asking[list[Suggestion]]:
        raise DataError("No such text.")
        yield

    searches, open_gate = held(SharedTable())
    bad = searches.submit(Search(asking=refuse, tenant="a"))
    good = begin(searches, ["a"])
    open_gate()
    with pytest.raises(DataError, match="No such text"):
        bad.result(PATIENCE)
    assert good[0].result(PATIENCE) == alone("a")


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    return bluejay.load("bluejay-tiny")


@pytest.mark.skipif(cpu_library() is None, reason="the kernels are not built")
def test_the_real_model_answers_typists_together_with_the_same_bits(tiny: LanguageModel) -> None:
    """Of two tenants, letter by letter: probabilities are those of a model that remembers nothing,
    and the calls fewer than when each asks by himself."""
    texts, model = ["The sea was", "What did he", "The ship wa", "I have nev"], tiny.runner
    bounds = SearchBounds(k=3)

    def asked(text: str) -> Callable[[NextTokens], Asking[list[Suggestion]]]:
        return lambda one: suggesting(one, tiny.tokenizer, text, bounds)

    def calls_of(together: int) -> tuple[int, list[list[Suggestion]]]:
        typed = TypedModel(model, most=128)
        assert typed.num_at_once >= together
        searches, found = Searches(typed), []
        for end in range(8, len(texts[0]) + 1):
            work = [
                Search(asking=asked(text[:end]), tenant="ab"[at % 2])
                for at, text in enumerate(texts)
            ]
            for begin in range(0, len(work), together):
                gate: Any = threading.Event()
                searches._thread.submit(gate.wait, PATIENCE)
                futures = [searches.submit(one) for one in work[begin : begin + together]]
                gate.set()
                found += [future.result(PATIENCE) for future in futures]
        assert typed._memory is not None
        return typed._memory.num_calls, found

    (few, together), (many, apart) = calls_of(4), calls_of(1)
    assert together == apart
    assert together[:4] == [suggest(model, tiny.tokenizer, text[:8], k=3) for text in texts]
    assert few < many
