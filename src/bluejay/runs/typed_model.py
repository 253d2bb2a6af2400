"""The model that suggestions are asked of: with a memory where kernels allow one."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

import jax.numpy as jnp

from bluejay.generation.prompt_chunks import CHUNK_SIZES
from bluejay.generation.pulse import Pulse
from bluejay.generation.remembered_rows import OwnedIds
from bluejay.generation.remembering_runner import (
    FEWEST_ROWS,
    RememberingRunner,
    can_remember,
)
from bluejay.generation.runner import Runner
from bluejay.model.cache import cache_bytes, cache_capacity
from bluejay.model.config import DecoderConfig
from bluejay.text.next_tokens import Branch, NextTokens, Question, Start, answer

MOST_TYPED: Final = 512
"""Tokens of a typed text that a server suggests words from: what stands further back moves them
little."""

# Texts of so many typists, with what may follow: one of each is asked with every letter. Of ten, at
# 24 rows, every second letter had to read again what it had lost (docs/lab-book.md).
_MOST_ROWS: Final = 192
# Of keys and values, if all rows were as long as they may be, and of logits and probabilities.
_ROW_BYTES: Final = 512 << 20
_LOGIT_BYTES: Final = 128 << 20


class TypedModel:
    """A runner that reads only the last `most` tokens of a text, and remembers what it read.

    It asks the runner itself where kernels keep no cache. Implements `NextTokens`, for one owner,
    and `serving.searches.SharedModel`.
    """

    def __init__(self, runner: Runner, *, most: int) -> None:
        self.config = _typed_config(runner, most)
        self._runner = runner
        self.pulse = Pulse()
        self._memory: RememberingRunner | None = None
        if can_remember(runner):
            self._memory = RememberingRunner(
                runner,
                context_length=self.config.context_length,
                num_rows=num_typed_rows(self.config, runner.cache_dtype),
                most_bytes=_LOGIT_BYTES,
            )
            self.pulse = self._memory.pulse
        self._own = self.of_tenant("")

    @property
    def num_at_once(self) -> int:
        """Searches that may ask in turn: without a memory each holds much of the runner's."""
        return 1 if self._memory is None else self._memory.num_at_once

    def of_tenant(self, tenant: str) -> NextTokens:
        """The model as one tenant asks it: what was typed hastens no other's answers."""
        if self._memory is None:
            return _EndRunner(self._runner, self.config, self.pulse)
        return self._memory.of_tenant(tenant)

    def start(self, ids: Sequence[int], *, reserve: int = 0) -> Any:
        return self._own.start(ids, reserve=reserve)

    def branch(self, prefix: Any, token: int) -> Any:
        return self._own.branch(prefix, token)

    @property
    def reads_at_once(self) -> int:
        """Paths that a question may name."""
        return 1 if self._memory is None else self._memory.reads_at_once

    def branch_first(self, wanted: Sequence[tuple[Any, int]]) -> Any:
        return answer(self._own, Branch(wanted))

    def answers(self, asked: Sequence[tuple[str, Question]]) -> list[Any]:
        """What each tenant's model answers, in common calls where there is a memory."""
        if self._memory is None:
            return [answer(self.of_tenant(tenant), question) for tenant, question in asked]
        prompts: dict[int, OwnedIds] = {}
        steps: dict[int, list[OwnedIds]] = {}
        for place, (tenant, question) in enumerate(asked):
            own = self._memory.of_tenant(tenant)
            if isinstance(question, Start):
                prompts[place] = own.prompt(question.ids, question.reserve)
            else:
                steps[place] = own.steps(question.wanted)
        found = self._memory.after([*prompts.values()], [*steps.values()])
        by_place = dict(zip([*prompts, *steps], found, strict=True))
        return [by_place[place] for place in range(len(asked))]

    def recalled(self, tenant: str, question: Question) -> Any | None:
        """The answer, if it is remembered."""
        if self._memory is None:
            return None
        own = self._memory.of_tenant(tenant)
        if isinstance(question, Start):
            return self._memory.recalled(own.prompt(question.ids, question.reserve))
        return self._memory.recalled(own.steps(question.wanted[:1])[0])

    def warm_up_runs(self) -> list[Callable[[], None]]:
        """What compiles all programs, piece by piece."""
        if self._memory is not None:
            return [self._memory.warm_up]
        longest = self.config.context_length - 1
        pieces = [size for size in (*CHUNK_SIZES, sum(CHUNK_SIZES)) if size <= longest]
        return [partial(self._warm_up, length) for length in sorted({*pieces, longest})]

    def _warm_up(self, length: int) -> None:
        self._runner.branch(self._runner.start([0] * length), 0).logits.block_until_ready()


class _EndRunner:
    """A runner with a context of fewer tokens, which waits for what it is asked."""

    def __init__(self, runner: Runner, config: DecoderConfig, pulse: Pulse) -> None:
        self.config, self._runner, self._pulse = config, runner, pulse

    def start(self, ids: Sequence[int], *, reserve: int = 0) -> Any:
        with self._pulse.piece():
            found = self._runner.start(ids, reserve=reserve)
            found.logits.block_until_ready()
        return found

    def branch(self, prefix: Any, token: int) -> Any:
        with self._pulse.piece():
            found = self._runner.branch(prefix, token)
            found.logits.block_until_ready()
        return found


def num_typed_rows(config: DecoderConfig, cache_dtype: str) -> int:
    """Rows that are remembered of texts as long as the context."""
    bytes_per_row = _bytes_per_row(config, cache_dtype)
    return max(FEWEST_ROWS, min(_MOST_ROWS, _ROW_BYTES // bytes_per_row))


def typed_bytes(runner: Runner, *, most: int) -> int:
    """What a `TypedModel` may come to remember, if all texts were as long as they may be."""
    if not can_remember(runner):
        return 0
    config = _typed_config(runner, most)
    num_rows = num_typed_rows(config, runner.cache_dtype)
    return num_rows * _bytes_per_row(config, runner.cache_dtype) + _LOGIT_BYTES


def _typed_config(runner: Runner, most: int) -> DecoderConfig:
    return replace(runner.config, context_length=min(most, runner.config.context_length))


def _bytes_per_row(config: DecoderConfig, cache_dtype: str) -> int:
    return cache_bytes(
        config,
        positions=cache_capacity(config.context_length),
        bytes_per_value=jnp.dtype(cache_dtype).itemsize,
    )
