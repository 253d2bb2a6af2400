"""Sampler chains for the samples of one call."""

from collections.abc import Callable, Iterable, Sequence

from bluejay.generation.engine_requests import Constraint
from bluejay.generation.sampler_chain import SamplerChain, Stage
from bluejay.serving.service import TextService


class ChainMaker:
    """Makes a chain of stages for a sample of a prompt: `SampleOptions.chain`.

    `stages` gives new ones for the sample of a number, from 0, and `constraint` a new one. The ids
    of `banned` never come.
    """

    def __init__(
        self,
        service: TextService,
        stages: Callable[[int], Sequence[Stage]],
        *,
        constraint: Callable[[], Constraint] | None = None,
        banned: Iterable[int] = (),
    ) -> None:
        self._stages, self._constraint = stages, constraint
        self._allowed = service.allowed.copy()
        self._allowed[list(banned)] = False

    def __call__(self, prompt: Sequence[int], sample: int) -> SamplerChain:
        """The chain of one sample."""
        return SamplerChain(
            self._stages(sample),
            prompt,
            allowed=self._allowed,
            constraint=self._constraint and self._constraint(),
        )
