"""Sampler chains for the samples of one call."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from bluejay.generation.engine_requests import Combine, Constraint
from bluejay.generation.sampler_chain import SamplerChain, Stage
from bluejay.serving.samples import SampleOptions
from bluejay.serving.service import TextService
from bluejay.text.grammar import CompiledGrammar


class ChainMaker:
    """Makes a chain of stages for each sample of a call with one prompt.

    `stages` gives new ones for the sample of a number, from 0. The ids of `banned` never come.
    """

    def __init__(
        self,
        service: TextService,
        stages: Callable[[int], Sequence[Stage]],
        prompt: Sequence[int],
        *,
        grammar: CompiledGrammar | None = None,
        banned: Iterable[int] = (),
    ) -> None:
        self._stages, self._prompt, self._grammar = stages, prompt, grammar
        self._allowed = service.allowed.copy()
        self._allowed[list(banned)] = False
        self._num_made = 0
        self._chain: SamplerChain | None = None
        self._taken: set[str] = set()

    def options(self, options: SampleOptions) -> SampleOptions:
        """The options with a chain in them."""
        return replace(options, combine=self._combine, constraint=self._constraint)

    def _combine(self) -> Combine:
        return self._take("combine").combine

    def _constraint(self) -> Constraint:
        return self._take("constraint")

    def _take(self, role: str) -> SamplerChain:
        """The chain of the sample that is being made: asked for once in each role."""
        if self._chain is None or role in self._taken:
            self._chain = SamplerChain(
                self._stages(self._num_made),
                self._prompt,
                allowed=self._allowed,
                constraint=None if self._grammar is None else self._grammar.start(),
            )
            self._num_made += 1
            self._taken.clear()
        self._taken.add(role)
        return self._chain
