"""What `bluejay bench` measures: rows, contexts and prompts, as far as a model has room."""

from dataclasses import dataclass, replace

from bluejay.core.errors import UsageError

MOST_ROWS = 128


@dataclass(frozen=True, kw_only=True)
class DecodeCase:
    """`batch` rows that go on behind `context` tokens each, all or none of them greedy."""

    batch: int
    context: int
    is_greedy: bool = True

    @property
    def prompt(self) -> int:
        """Tokens before the first choice: a model cannot go on from nothing."""
        return max(self.context, 1)


@dataclass(frozen=True, kw_only=True)
class BenchPlan:
    """Numbers to measure with; `repeat` readings of each, of which the median counts.

    Raises UsageError for a number out of its range.
    """

    batches: tuple[int, ...] = (1, 4, 8, 16)
    prompts: tuple[int, ...] = (128, 512, 2048)
    contexts: tuple[int, ...] = (0, 1900)
    tokens: int = 64
    repeat: int = 3

    def __post_init__(self) -> None:
        lowest = {"batch": 1, "prompt": 1, "context": 0}
        given = {"batch": self.batches, "prompt": self.prompts, "context": self.contexts}
        for name, numbers in given.items():
            for number in numbers:
                if number < lowest[name]:
                    raise UsageError(f"{name} is {number}, but it must be {lowest[name]} or more.")
        for batch in self.batches:
            if batch > MOST_ROWS:
                raise UsageError(f"batch is {batch}, but it must be at most {MOST_ROWS}.")
        for name, number in (("tokens", self.tokens), ("repeat", self.repeat)):
            if number < 1:
                raise UsageError(f"{name} is {number}, but it must be 1 or more.")
        if not self.batches or not self.contexts:
            raise UsageError("batch and context need at least one number each.")

    def decode_cases(self) -> list[DecodeCase]:
        """Context 0 with every batch, deeper ones with the first alone, for filling many rows
        takes minutes; and the first case once more with temperature and top-p."""
        cases = [DecodeCase(batch=batch, context=0) for batch in self.batches if 0 in self.contexts]
        cases += [DecodeCase(batch=self.batches[0], context=n) for n in self.contexts if n]
        return [*cases, replace(cases[0], is_greedy=False)]

    def fitted(self, context_length: int) -> tuple["BenchPlan", list[str]]:
        """What a context of that length has room for, and a sentence for everything left out.

        Raises UsageError if no context has room for the new tokens.
        """
        room = context_length - self.tokens - 1
        prompts = tuple(number for number in self.prompts if number <= context_length)
        contexts = tuple(number for number in self.contexts if max(number, 1) <= room)
        if not contexts:
            raise UsageError(
                f"{self.tokens} new tokens behind a context of {min(self.contexts)} exceed the "
                f"model's {context_length}: lower --tokens or --context."
            )
        left_out = [("a prompt", n) for n in self.prompts if n not in prompts]
        left_out += [("a context", n) for n in self.contexts if n not in contexts]
        notes = [
            f"Left out: {what} of {number:,} tokens, for the model's context is {context_length:,}."
            for what, number in left_out
        ]
        return replace(self, prompts=prompts, contexts=contexts), notes
