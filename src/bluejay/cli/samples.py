"""Generated samples on their way to the terminal or into JSON."""

import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bluejay.cli.table import print_table
from bluejay.cli.terminal import display_width, harmless, is_terminal, styled, width

# The shapes of bluejay.text.completion.TextDelta, Completion and TokenLogprob, which bring JAX, or
# of those that bluejay.serving.client has for models elsewhere, whose ids are not known.
Delta = Any
Finished = Any
Token = Any


class Samples:
    """What has come of every sample, finished or not."""

    def __init__(self, *, num_samples: int) -> None:
        self.texts = [""] * num_samples
        self.finished: dict[int, Finished] = {}
        self.is_interrupted = False
        self._times: list[float] = []

    def add(self, delta: Delta) -> None:
        """Take in new text, and the finished sample that may come with it."""
        self._times.append(time.monotonic())
        self.texts[delta.sample_index] += delta.text
        if delta.completion is not None:
            self.finished[delta.sample_index] = delta.completion

    @property
    def num_tokens(self) -> int:
        """Tokens of the finished samples."""
        return sum(_num_tokens(completion) for completion in self.finished.values())

    @property
    def drafts(self) -> tuple[int, int]:
        """How many tokens of the finished samples were drafted and checked, and how many taken."""
        done = self.finished.values()
        return sum(item.num_drafted for item in done), sum(item.num_accepted for item in done)

    def tokens_per_second(self) -> float | None:
        """The rate after the first two reports, which wait for prompt and compilation; None for
        fewer than ten."""
        if len(self._times) < 12:
            return None
        return (len(self._times) - 2) / (self._times[-1] - self._times[1])


class SamplePrinter:
    """Prints samples one after the other, each as it grows, with the prompt before it."""

    def __init__(self, prompt: str, *, num_samples: int) -> None:
        self._prompt, self._num_samples = prompt, num_samples
        self._current: int | None = None
        self._waiting: dict[int, str] = {}
        self._finished: set[int] = set()
        self._ends_line = True
        self._wrapper: WordWrapper | None = None

    def show(self, delta: Delta) -> None:
        """Print what belongs to the current sample; keep what belongs to later ones."""
        index = delta.sample_index
        if self._current is None:
            self._begin(0)
        self._waiting[index] = self._waiting.get(index, "") + delta.text
        if delta.completion is not None:
            self._finished.add(index)
        while self._current is not None:
            self._write(self._waiting.pop(self._current, ""))
            if self._current not in self._finished or self._current + 1 == self._num_samples:
                break
            self._begin(self._current + 1)

    def show_all(self, samples: Samples) -> None:
        """Print all samples at once."""
        for index, text in enumerate(samples.texts):
            self._begin(index)
            self._write(text)

    def end(self) -> None:
        """Close the last line."""
        if self._current is not None and not self._ends_line:
            print()
        sys.stdout.flush()

    def _begin(self, index: int) -> None:
        self._wrapper = WordWrapper() if is_terminal(sys.stdout) else None
        if index and not self._ends_line:
            print()
        if self._num_samples > 1:
            gap = "\n" if index else ""
            print(gap + styled(f"--- sample {index + 1} of {self._num_samples} ---", "bold"))
        self._current = index
        self._write(self._prompt, style="dim")

    def _write(self, text: str, style: str = "") -> None:
        if not text:
            return
        self._ends_line = text.endswith("\n")
        if self._wrapper is not None:
            text = self._wrapper.feed(harmless(text))
        sys.stdout.write(styled(text, style) if style else text)
        sys.stdout.flush()


class WordWrapper:
    """Breaks the lines of a growing text between words, as the terminal alone would not.

    A word that has begun on a line and does not fit is taken back and written on the next.
    """

    def __init__(self) -> None:
        self._column, self._word = 0, ""

    def feed(self, text: str) -> str:
        """What to write for the next piece of text."""
        return "".join(map(self._char, text.expandtabs(4)))

    def _char(self, char: str) -> str:
        if char == "\n":
            self._column, self._word = 0, ""
            return char
        limit, columns = width() - 1, display_width(char)
        if char == " ":
            self._word = ""
            self._column += 1
            return char if self._column <= limit else ""
        begun, self._word = self._word, self._word + char
        self._column += columns
        if self._column <= limit or display_width(self._word) > limit:
            return char
        self._column = display_width(self._word)
        back = f"\x1b[{display_width(begun)}D\x1b[K" if begun else ""
        return f"{back}\n{self._word}"


def print_json(samples: Samples, *, model: str, prompt: str, seed: int) -> None:
    """One object with all samples; unfinished ones end with "interrupted"."""
    document = {
        "model": model,
        "prompt": prompt,
        "seed": seed,
        "completions": [
            _completion_object(text, samples.finished.get(index))
            for index, text in enumerate(samples.texts)
        ],
    }
    print(json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2))


def print_logprobs(samples: Samples) -> None:
    """A table of every token with its probability and what the model held likely there."""
    for index, completion in sorted(samples.finished.items()):
        print()
        if len(samples.texts) > 1:
            print(styled(f"sample {index + 1}", "bold"))
        rows = [
            [_quoted(token.text), _percent(token.logprob), _alternatives(token.alternatives)]
            for token in completion.tokens
        ]
        print_table(rows, header=["token", "prob", "likeliest"], right=[1], flexible=2)


def print_summary(
    samples: Samples, *, max_tokens: int, seed: int | None, options: Mapping[str, Any]
) -> None:
    """One line on stderr: how much, how fast, why it ended, and how to get it again."""
    parts = []
    if samples.is_interrupted:
        parts.append("stopped by Ctrl-C")
    else:
        parts.append(f"{samples.num_tokens} tokens")
    rate = samples.tokens_per_second()
    if rate is not None:
        parts.append(f"{rate:.1f} tokens/s")
    drafted, accepted = samples.drafts
    if drafted:
        parts.append(f"{accepted} of {drafted} drafted tokens accepted")
    reasons = {completion.finish_reason for completion in samples.finished.values()}
    if not samples.is_interrupted and reasons == {"length"}:
        parts.append(f"cut at --max-tokens {max_tokens}")
    if seed is None and options.get("temperature") != 0:
        parts.append(f"again with --seed {options['seed']}")
    try:
        if is_terminal(sys.stderr) and is_terminal(sys.stdout):
            print(file=sys.stderr)
        print(styled("; ".join(parts), "dim", sys.stderr), file=sys.stderr, flush=True)
    except OSError:
        pass  # the text is out, and nobody reads what is said about it


def _num_tokens(completion: Finished) -> int:
    return completion.num_tokens if completion.ids is None else len(completion.ids)


def _completion_object(text: str, completion: Finished | None) -> dict[str, Any]:
    if completion is None:
        return {"text": text, "finish_reason": "interrupted"}
    found: dict[str, Any] = {
        "text": completion.text,
        "finish_reason": completion.finish_reason,
    }
    if completion.ids is not None:
        found["ids"] = list(completion.ids)
    return found | {"tokens": [_token_object(token) for token in completion.tokens]}


def _token_object(token: Token) -> dict[str, Any]:
    known = {} if token.id is None else {"id": token.id}
    return known | {
        "text": token.text,
        "logprob": token.logprob,
        "alternatives": [
            {"text": text, "logprob": logprob}
            for text, logprob in token.alternatives
            if math.isfinite(logprob)
        ],
    }


def _percent(logprob: float | None) -> str:
    return "" if logprob is None else f"{math.exp(logprob):.1%}"


def _quoted(text: str) -> str:
    return json.dumps(harmless(text), ensure_ascii=False)


def _alternatives(alternatives: Sequence[tuple[str, float]]) -> str:
    return "  ".join(f"{_quoted(text)} {_percent(logprob)}" for text, logprob in alternatives)
