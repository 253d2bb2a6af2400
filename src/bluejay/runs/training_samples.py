"""Continuations of fixed prompts at each evaluation: one can watch a model learn to write."""

import jax

from bluejay.generation.generate import GenerationRequest
from bluejay.generation.runner import Runner
from bluejay.generation.sampling_params import SamplingParams
from bluejay.model.params import DecoderParams, unstack_blocks
from bluejay.runs.train_run import TrainRun
from bluejay.text.completion import complete
from bluejay.text.conventions import conventions_of
from bluejay.text.prompt import prompt_ids
from bluejay.training.journal import Journal
from bluejay.vocab.tokenizer import Tokenizer

_SAMPLING = SamplingParams(temperature=0.8, top_p=0.95, seed=0)


class SampleWriter:
    """Writes a line to samples.jsonl for every prompt, always with the same seed."""

    def __init__(self, run: TrainRun, tokenizer: Tokenizer, journal: Journal) -> None:
        self._run, self._tokenizer, self._journal = run, tokenizer, journal
        self._allowed = tokenizer.sampleable_mask(run.model.vocab_size)
        self._requests = [
            GenerationRequest(
                prompt_ids=prompt_ids(tokenizer, prompt),
                max_tokens=run.intervals.sample_tokens,
                sampling=_SAMPLING,
                stop_ids=conventions_of(tokenizer).stop_ids,
            )
            for prompt in run.prompts
        ]
        self._runner: Runner | None = None

    def write(self, step: int, params: DecoderParams) -> None:
        """Sample every prompt with these parameters."""
        unstacked = jax.jit(unstack_blocks)(params)
        if self._runner is None:
            self._runner = Runner(unstacked, config=self._run.model)
        self._runner.params = unstacked
        deltas = complete(
            self._runner, self._tokenizer, self._requests, stop=(), allowed=self._allowed
        )
        for delta in deltas:
            if delta.completion is not None:
                self._journal.sample(
                    {
                        "step": step,
                        "tokens": step * self._run.batch.tokens,
                        "prompt": self._run.prompts[delta.prompt_index],
                        "text": delta.completion.text,
                    }
                )
