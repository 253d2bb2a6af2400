"""What a search for words asks of a model, and who answers it."""

from collections.abc import Generator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from bluejay.model.config import DecoderConfig


class NextTokens(Protocol):
    """What is asked of a model; `bluejay.generation.runner.Runner` has it.

    `start` and `branch` give an object whose `logits` [V] are those of the next token. If it has
    `probabilities`, None at first, what a search makes of the logits is kept there.
    """

    @property
    def config(self) -> DecoderConfig: ...

    def start(self, ids: Sequence[int], *, reserve: int = 0) -> Any: ...

    def branch(self, prefix: Any, token: int) -> Any: ...


@runtime_checkable
class SeveralAtOnce(Protocol):
    """A model that reads up to `reads_at_once` paths in one call."""

    reads_at_once: int

    def branch_first(self, wanted: Sequence[tuple[Any, int]]) -> Any:
        """`branch` of the first; the others are likely to be asked for next."""


class Start(NamedTuple):
    """A question for what `NextTokens.start` gives."""

    ids: Sequence[int]
    reserve: int


class Branch(NamedTuple):
    """A question for what `NextTokens.branch` gives of the first; the others are likely next."""

    wanted: Sequence[tuple[Any, int]]


Question = Start | Branch
Found = TypeVar("Found")
# Sent the answer to each question.
Asking = Generator[Question, Any, Found]


def answer(model: NextTokens, question: Question) -> Any:
    """The model's answer."""
    if isinstance(question, Start):
        return model.start(question.ids, reserve=question.reserve)
    several = getattr(model, "branch_first", None)  # isinstance of a protocol takes 10 us
    return model.branch(*question.wanted[0]) if several is None else several(question.wanted)


def answered(asking: Asking[Found], model: NextTokens) -> Found:
    """What comes of it when the model answers every question."""
    try:
        question = next(asking)
        while True:
            question = asking.send(answer(model, question))
    except StopIteration as end:
        found: Found = end.value
        return found
