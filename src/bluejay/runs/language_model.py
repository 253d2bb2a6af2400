"""The Python API: a model that completes text, suggests words and scores."""

import secrets
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.convert import write_model
from bluejay.checkpoints.locate import locate
from bluejay.checkpoints.model_files import ModelFiles, open_model
from bluejay.core.errors import CheckpointError, UsageError
from bluejay.generation.generate import GenerationRequest, allowed_log_probabilities
from bluejay.generation.runner import Runner
from bluejay.generation.sampling_params import SamplingParams
from bluejay.model.config import DecoderConfig
from bluejay.runs.compile_cache import configure_compile_cache
from bluejay.runs.loading import load_params
from bluejay.text.completion import Completion, TextDelta, complete, prompt_logprobs
from bluejay.text.conventions import conventions_of
from bluejay.text.prompt import prompt_ids
from bluejay.text.suggestions import suggest
from bluejay.vocab.tokenizer import Tokenizer

Prompt = str | Sequence[int]
# What reads well on a base model: a little below the model's own spread, without its tail.
DEFAULT_TEMPERATURE = 0.8
DEFAULT_TOP_P = 0.95
DEFAULT_MAX_TOKENS = 64
_SEED_BITS = 31


class LanguageModel:
    """A loaded decoder with its tokenizer. Arguments are named as in the OpenAI API.

    Texts begin as the model's training documents did: a document-start token that the tokenizer
    knows goes before every prompt given as text. Prompts given as ids are taken as they are.
    """

    def __init__(self, files: ModelFiles, runner: Runner) -> None:
        self.files = files
        self.config: DecoderConfig = files.config
        self.runner = runner

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer. Raises CheckpointError if no tokenizer files lie with it."""
        found = self.files.tokenizer()
        if found is None:
            raise CheckpointError(
                f"{self.files.path} has no tokenizer files, which this needs: put tokenizer.json "
                "beside the weights, or give token ids."
            )
        return found

    @cached_property
    def allowed(self) -> NDArray[np.bool_]:
        """[V] bool: the ids that may be sampled. All of them for a model without a tokenizer."""
        rows = self.config.vocab_size
        found = self.files.tokenizer()
        return np.ones(rows, np.bool_) if found is None else found.sampleable_mask(rows)

    def generate(
        self,
        prompt: str,
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        temperature: float = DEFAULT_TEMPERATURE,
        top_p: float = DEFAULT_TOP_P,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        **sampling: object,
    ) -> str:
        """The continuation of `prompt`, without it.

        More keywords are the fields of SamplingParams: `top_k`, `min_p`, `typical_p`,
        `repetition_penalty`, `presence_penalty`, `frequency_penalty`, `logit_bias`. Temperature 0
        is greedy. Without a seed every call draws a new one. Raises UsageError for values out of
        range and for a prompt that does not fit into the context with its new tokens.
        """
        [completion] = self.complete(
            prompt,
            max_tokens=max_tokens,
            temperature=temperature,
            top_p=top_p,
            stop=stop,
            seed=seed,
            **sampling,
        )
        return completion.text

    def stream(self, prompt: str, **options: object) -> Iterator[str]:
        """As `generate`, piece by piece: whole characters, never part of a stop string."""
        for delta in self.deltas(prompt, **options):
            if delta.text:
                yield delta.text

    def complete(
        self,
        prompt: Prompt | Sequence[str] | Sequence[Sequence[int]],
        *,
        logprobs: int | None = None,
        echo: bool = False,
        **options: object,
    ) -> list[Completion]:
        """All samples of one prompt or of several, in order, with log probabilities.

        `n` samples per prompt. `logprobs` is the number of alternatives that come with every
        token; `echo` adds the prompt's tokens, scored too.
        """
        deltas = self.deltas(prompt, logprobs=logprobs, **options)
        done = [delta.completion for delta in deltas if delta.completion is not None]
        done.sort(key=lambda completion: (completion.prompt_index, completion.sample_index))
        return [self._with_prompt(prompt, item, logprobs) for item in done] if echo else done

    def deltas(
        self,
        prompt: Prompt | Sequence[str] | Sequence[Sequence[int]],
        *,
        max_tokens: int = DEFAULT_MAX_TOKENS,
        stop: str | Sequence[str] | None = None,
        n: int = 1,
        logprobs: int | None = None,
        **sampling: object,
    ) -> Iterator[TextDelta]:
        """New text of every sample as it becomes certain, each sample's Completion at its end."""
        params = sampling_params(**sampling)
        stop_ids = conventions_of(self.tokenizer).stop_ids
        requests = [
            GenerationRequest(
                prompt_ids=ids,
                max_tokens=max_tokens,
                sampling=params,
                stop_ids=stop_ids,
                num_samples=n,
                num_alternatives=logprobs or 0,
            )
            for ids in self._all_ids(prompt)
        ]
        stops = [stop] if isinstance(stop, str) else list(stop or ())
        return complete(self.runner, self.tokenizer, requests, stop=stops, allowed=self.allowed)

    def suggest(self, prefix: str, k: int = 5) -> list[tuple[str, float]]:
        """The likeliest next words, or completions of a half-typed one, with probabilities."""
        found = suggest(self.runner, self.tokenizer, prefix, k=k)
        return [(item.word, item.probability) for item in found]

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        """Raw logits [len(ids), vocabulary] of the token after each position."""
        return self.runner.score(ids)

    def score(self, context: str, continuation: str) -> tuple[float, bool]:
        """(log probability of the continuation after the context in nats, whether it is what
        greedy decoding gives).

        Both are tokenized together, as the continuation would follow in a text, and the context
        is taken as it is; an empty one is the document start. This is `loglikelihood` of
        lm-evaluation-harness.
        """
        return self.score_ids(*self._split_ids(context, continuation))

    def score_ids(self, context: Sequence[int], continuation: Sequence[int]) -> tuple[float, bool]:
        """As `score`, for ids."""
        if not context or not continuation:
            raise UsageError("Scoring needs at least one token of context and of continuation.")
        ids = [*context, *continuation]
        rows = self.runner.score(ids[:-1])[len(context) - 1 :]
        scores = allowed_log_probabilities(rows, self.allowed)
        chosen = scores[np.arange(len(continuation)), np.asarray(continuation)]
        greedy = bool((scores.argmax(axis=-1) == np.asarray(continuation)).all())
        return float(chosen.astype(np.float64).sum()), greedy

    def save(self, folder: str | Path, format: Literal["hf", "native"] = "native") -> None:
        """Write the model with its tokenizer. Raises UsageError if the folder is occupied."""
        write_model(self.files, Path(folder), to=format)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """The ids that the model reads for a prompt."""
        return prompt_ids(self.tokenizer, prompt) if isinstance(prompt, str) else list(prompt)

    def _all_ids(self, prompt: Prompt | Sequence[str] | Sequence[Sequence[int]]) -> list[list[int]]:
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)):
            return [self.prompt_ids(prompt)]  # type: ignore[arg-type]  # narrowed by its first item
        return [self.prompt_ids(item) for item in prompt]  # type: ignore[arg-type]

    def _split_ids(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        start = list(conventions_of(self.tokenizer).document_start)
        if not context:
            return start, self.tokenizer.encode(continuation)
        # Trailing spaces of the context belong to the continuation's first token.
        stem = context.rstrip(" ")
        whole = self.tokenizer.encode(context + continuation)
        own = len(self.tokenizer.encode(stem))
        return (whole[:own], whole[own:]) if own else (start, whole)

    def _with_prompt(
        self,
        prompt: Prompt | Sequence[str] | Sequence[Sequence[int]],
        item: Completion,
        logprobs: int | None,
    ) -> Completion:
        tokens = prompt_logprobs(
            self.runner,
            self.tokenizer,
            self._all_ids(prompt)[item.prompt_index],
            allowed=self.allowed,
            num_alternatives=logprobs or 0,
        )
        return Completion(**{**vars(item), "prompt_tokens": tokens})


def sampling_params(
    *,
    temperature: float = DEFAULT_TEMPERATURE,
    top_p: float = DEFAULT_TOP_P,
    seed: int | None = None,
    **others: object,
) -> SamplingParams:
    """SamplingParams with our defaults. Raises UsageError for an unknown name."""
    chosen = secrets.randbits(_SEED_BITS) if seed is None else seed
    try:
        return SamplingParams(temperature=temperature, top_p=top_p, seed=chosen, **others)  # type: ignore[arg-type]
    except TypeError as error:
        name = next((key for key in others if key not in vars(SamplingParams())), "")
        known = ", ".join(vars(SamplingParams()))
        raise UsageError(f"There is no sampling option {name!r}: there are {known}.") from error


def load(
    model: str | Path | None = None,
    *,
    dtype: str | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> LanguageModel:
    """Load a model by catalogue name, folder, file or hub `owner/name`; None is the best present.

    `dtype` is that of weights and activations: by default float32 on CPU, bfloat16 elsewhere.
    `on_progress` is called with parameters loaded and in all. Raises CheckpointError for a model
    that is missing, damaged or foreign, MemoryLimitError if it does not fit.
    """
    configure_compile_cache()
    files = open_model(locate(model))
    params = load_params(files, dtype=dtype, on_tensor=on_progress)
    return LanguageModel(files, Runner(params, config=files.config))
