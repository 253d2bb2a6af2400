"""Searches for words on one thread, several at a time: what they ask next goes into one call."""

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from bluejay.text.next_tokens import Asking, NextTokens, Question, answer
from bluejay.text.suggestions import Suggestion


@runtime_checkable
class SharedModel(Protocol):
    """A model that several searches ask in turn, and that answers a tenant sooner what the same
    tenant, and no other, asked before."""

    @property
    def num_at_once(self) -> int:
        """How many searches."""

    def of_tenant(self, tenant: str) -> NextTokens:
        """The model as one tenant asks it."""

    def answers(self, asked: Sequence[tuple[str, Question]]) -> list[Any]:
        """What each tenant's model answers, in fewer calls than if each asked alone."""

    def recalled(self, tenant: str, question: Question) -> Any | None:
        """The answer, if that takes no call."""


class CancelledError(Exception):
    """Nobody wants the search any more."""


@dataclass(kw_only=True, eq=False)
class Search:
    """What is asked of a tenant's model. Once it `is_cancelled` it asks no more."""

    asking: Callable[[NextTokens], Asking[list[Suggestion]]]
    tenant: str
    is_cancelled: threading.Event = field(default_factory=threading.Event)


@dataclass(kw_only=True, eq=False)
class _Running:
    search: Search
    model: NextTokens
    asking: Asking[list[Suggestion]]
    future: "Future[list[Suggestion]]"
    question: Question | None = None  # None once it has ended

    def go_on(self, answer: Any) -> None:
        """Take an answer, up to the next question or the end."""
        try:
            self.question = self.asking.send(answer)
        except StopIteration as end:
            self.question = None
            self.future.set_result(end.value)
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End without a result."""
        self.question = None
        self.asking.close()
        self.future.set_exception(error)


class Searches:
    """Runs searches over a model on a thread of its own; `submit` from any thread."""

    def __init__(self, model: NextTokens) -> None:
        self._model = model
        self._shared = model if isinstance(model, SharedModel) else None
        self.num_at_once = self._shared.num_at_once if self._shared else 1
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="bluejay-suggestions")
        self._lock = threading.Lock()
        self._new: deque[tuple[Search, Future[list[Suggestion]]]] = deque()
        self._is_working = False

    def submit(self, search: Search) -> "Future[list[Suggestion]]":
        """What the search finds. It begins at once, so at most `num_at_once` are to run."""
        future: Future[list[Suggestion]] = Future()
        with self._lock:
            self._new.append((search, future))
            if not self._is_working:
                self._is_working = True
                self._thread.submit(self._work)
        return future

    def _work(self) -> None:
        running: list[_Running] = []
        while True:
            with self._lock:
                new = [self._new.popleft() for _ in range(len(self._new))]
                if not (new or running):
                    self._is_working = False
                    return
            running += [self._begun(*one) for one in new if one[1].set_running_or_notify_cancel()]
            for one in running:
                self._recall(one)
            # They may have ended with what is remembered.
            running = [one for one in running if one.question is not None]
            if running:
                self._take_call(running)
            running = [one for one in running if one.question is not None]

    def _begun(self, search: Search, future: "Future[list[Suggestion]]") -> _Running:
        model = self._shared.of_tenant(search.tenant) if self._shared else self._model
        one = _Running(search=search, model=model, asking=search.asking(model), future=future)
        one.go_on(None)
        return one

    def _take_call(self, asking: Sequence[_Running]) -> None:
        """Answer what each of these asks, or end them."""
        try:
            answers = self._answers(asking)
        except BaseException as error:
            for one in asking:
                one.fail(error)
        else:
            for one, found in zip(asking, answers, strict=True):
                one.go_on(found)

    def _recall(self, one: _Running) -> None:
        """Answer what is remembered, unless nobody wants it any more."""
        try:
            while one.question is not None:
                if one.search.is_cancelled.is_set():
                    raise CancelledError
                if self._shared is None:
                    return
                found = self._shared.recalled(one.search.tenant, one.question)
                if found is None:
                    return
                one.go_on(found)
        except BaseException as error:
            one.fail(error)

    def _answers(self, asking: Sequence[_Running]) -> list[Any]:
        questions = [(one, one.question) for one in asking if one.question is not None]
        if self._shared is None or len(questions) == 1:
            return [answer(one.model, question) for one, question in questions]
        return self._shared.answers([(one.search.tenant, question) for one, question in questions])
