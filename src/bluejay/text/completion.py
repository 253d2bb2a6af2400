"""Text in, text out: prompts to ids, samples to text, up to a stop string."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bluejay.generation.engine_requests import TokenScore
from bluejay.generation.generate import (
    FinishReason,
    GenerationRequest,
    Sample,
    allowed_log_probabilities,
    generate,
)
from bluejay.generation.runner import Runner
from bluejay.generation.sampling import Choice
from bluejay.generation.speculation import AUTOMATIC, Speculation
from bluejay.text.sample_writer import SampleWriter
from bluejay.vocab.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class TokenLogprob:
    """A token of a text with its log probability and the likeliest alternatives there.

    `logprob` is the model's own, before temperature and penalties, in nats; None for the first
    token of a prompt, which follows nothing.
    """

    id: int
    text: str
    logprob: float | None
    alternatives: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Completion:
    """One finished sample. `text` leaves out the prompt and the stop string that ended it.

    `num_accepted` of `num_drafted` ids that speculation drafted were chosen.
    """

    text: str
    ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_index: int
    sample_index: int
    tokens: tuple[TokenLogprob, ...]
    prompt_tokens: tuple[TokenLogprob, ...] = ()
    num_drafted: int = 0
    num_accepted: int = 0


@dataclass(frozen=True, kw_only=True)
class TextDelta:
    """New text of one sample; `completion` comes with its last one."""

    prompt_index: int
    sample_index: int
    text: str
    completion: Completion | None = None


def complete(
    runner: Runner,
    tokenizer: Tokenizer,
    requests: Sequence[GenerationRequest],
    *,
    stop: Sequence[str],
    allowed: NDArray[np.bool_],
    speculation: Speculation = AUTOMATIC,
) -> Iterator[TextDelta]:
    """Yield text as it becomes certain: whole characters, nothing of a stop string."""
    rows: dict[tuple[int, int], _Row] = {}
    for sample in generate(runner, requests, allowed=allowed, speculation=speculation):
        key = (sample.request_index, sample.sample_index)
        row = rows.setdefault(key, _Row(tokenizer, stop, sample))
        text = row.update()
        done = row.completion() if sample.finish_reason is not None else None
        if done is not None and row.is_closed:
            continue
        row.is_closed = done is not None
        if text or done is not None:
            yield TextDelta(prompt_index=key[0], sample_index=key[1], text=text, completion=done)


def prompt_logprobs(
    runner: Runner,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    *,
    allowed: NDArray[np.bool_],
    num_alternatives: int = 0,
) -> tuple[TokenLogprob, ...]:
    """Log probability of every token of a prompt given those before it."""
    scores = allowed_log_probabilities(runner.score(ids), allowed)
    found = [TokenLogprob(id=ids[0], text=tokenizer.decode([ids[0]]), logprob=None)]
    for position, token in enumerate(ids[1:]):
        row = scores[position]
        best = np.argsort(-row, kind="stable")[:num_alternatives]
        found.append(
            TokenLogprob(
                id=token,
                text=tokenizer.decode([token]),
                logprob=float(row[token]),
                alternatives=tuple((tokenizer.decode([int(i)]), float(row[i])) for i in best),
            )
        )
    return tuple(found)


class _Row:
    """One sample with its text so far."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str], sample: Sample) -> None:
        self._tokenizer, self._sample = tokenizer, sample
        self._writer = SampleWriter(tokenizer, stops=stop)
        self._pieces: list[str] = []
        self._num_read = 0
        self.is_closed = False

    def update(self) -> str:
        """The text that the sample's new ids make certain; ends the sample at a stop string."""
        if self.is_closed:
            return ""
        sample = self._sample
        text = self._writer.write(map(_score, sample.choices[self._num_read :])).text
        self._num_read = len(sample.choices)
        if self._writer.is_stopped:
            sample.stop()
        elif sample.finish_reason is not None:
            text += self._writer.finish().text
        self._pieces.append(text)
        return text

    def completion(self) -> Completion:
        """The finished sample."""
        sample = self._sample
        assert sample.finish_reason is not None
        return Completion(
            text="".join(self._pieces),
            ids=tuple(sample.ids),
            finish_reason=sample.finish_reason,
            prompt_index=sample.request_index,
            sample_index=sample.sample_index,
            tokens=tuple(self._token(choice) for choice in sample.choices),
            num_drafted=sample.num_drafted,
            num_accepted=sample.num_accepted,
        )

    def _token(self, choice: Choice) -> TokenLogprob:
        decode = self._tokenizer.decode
        return TokenLogprob(
            id=choice.id,
            text=decode([choice.id]),
            logprob=choice.logprob,
            alternatives=tuple((decode([other]), value) for other, value in choice.alternatives),
        )


def _score(choice: Choice) -> TokenScore:
    return TokenScore(id=choice.id, logprob=choice.logprob, alternatives=choice.alternatives)
