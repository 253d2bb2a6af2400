"""The model that is served, as routes see it: its text, its names and its engine."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from bluejay.core.errors import BluejayError
from bluejay.generation.engine_requests import Engine
from bluejay.model.config import DecoderConfig
from bluejay.serving.errors import ApiError
from bluejay.serving.limits import Limits
from bluejay.text.chat_templates import ChatTemplate
from bluejay.text.conventions import TextConventions, conventions_of
from bluejay.text.fill_in_middle import FillMarks, fill_marks
from bluejay.text.prompt import prompt_ids
from bluejay.vocab.quoting import quoted
from bluejay.vocab.tokenizer import Tokenizer

# Tokenizing takes about a microsecond a character.
_SHORT_CHARACTERS = 4096


class TokenTimes(Protocol):
    """Who keeps times; called on the event loop, and must not block it."""

    def first_token(self, seconds: float) -> None:
        """A sample's first token came so long after it was submitted."""

    def more_tokens(self, seconds: float, count: int) -> None:
        """`count` more tokens of it came together, so long after those before."""


class NoTimes:
    """Keeps none."""

    def first_token(self, seconds: float) -> None:
        pass

    def more_tokens(self, seconds: float, count: int) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class TextService:
    """A model behind an engine.

    It answers to `model`, to `aliases`, and to the names of `adapters`, which choose its fine-tuned
    weights. `created` is in seconds since 1970. What a client asks for wrongly raises ApiError.
    """

    engine: Engine
    tokenizer: Tokenizer
    config: DecoderConfig
    model: str
    chat_template: ChatTemplate
    created: int
    aliases: tuple[str, ...] = ()
    adapters: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    times: TokenTimes = field(default_factory=NoTimes)

    @property
    def context_length(self) -> int:
        return self.engine.limits.context_length

    @cached_property
    def conventions(self) -> TextConventions:
        return conventions_of(self.tokenizer)

    @cached_property
    def fill_marks(self) -> FillMarks | None:
        """What marks a gap to be filled; None for models that were not trained to."""
        return fill_marks(self.tokenizer)

    @cached_property
    def allowed(self) -> NDArray[np.bool_]:
        """[V] bool: the ids that stand for something; padding rows do not."""
        return self.tokenizer.sampleable_mask(self.config.vocab_size)

    def adapter_of(self, model: str | None, adapter: str | None = None) -> str | None:
        """The adapter that a call's `model` and `adapter` choose. 404 for names unknown here."""
        if model is not None and model not in (self.model, *self.aliases, *self.adapters):
            known = ", ".join([self.model, *self.adapters])
            raise ApiError(
                404,
                f"There is no model {quoted(model)} here: there are {known}.",
                param="model",
                code="model_not_found",
            )
        if adapter is not None and adapter not in self.adapters:
            known = ", ".join(self.adapters) or "none"
            raise ApiError(
                404,
                f"There is no adapter {quoted(adapter)} here: there are {known}.",
                param="adapter",
                code="adapter_not_found",
            )
        return adapter or (model if model in self.adapters else None)

    def prompt_ids(self, text: str, *, param: str = "prompt") -> list[int]:
        """Ids of a text behind the document start."""
        return self._read(partial(prompt_ids, self.tokenizer), text, param)

    def text_ids(self, text: str, *, param: str = "prompt") -> list[int]:
        """Ids of a text alone: none for an empty one."""
        return self._read(self.tokenizer.encode, text, param)

    async def all_prompt_ids(
        self, texts: Sequence[str], *, param: str = "prompt"
    ) -> list[list[int]]:
        """As `prompt_ids`, of several; long texts do not hold up the event loop."""
        if sum(len(text) for text in texts) < _SHORT_CHARACTERS:
            return [self.prompt_ids(text, param=param) for text in texts]
        return await asyncio.to_thread(
            lambda: [self.prompt_ids(text, param=param) for text in texts]
        )

    def require_ids(self, ids: Sequence[int], *, param: str = "prompt") -> None:
        """Refuse a list without ids and one with ids that stand for nothing."""
        if not ids:
            raise ApiError(400, f"{param} has no tokens: give at least one.", param=param)
        for token in ids:
            if not (0 <= token < len(self.allowed) and self.allowed[token]):
                raise ApiError(
                    400,
                    f"{param} has the id {quoted(token)}, which stands for nothing here: the ids"
                    f" of {self.model} are 0 to {self.tokenizer.vocab_size - 1}.",
                    param=param,
                )

    def _read(self, encode: Callable[[str], list[int]], text: str, param: str) -> list[int]:
        self.limits.request.check("prompt_characters", len(text), param=param)
        try:
            return encode(text)
        except BluejayError as error:
            raise ApiError(400, str(error), param=param) from error
