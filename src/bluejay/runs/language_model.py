"""The Python API: a model that completes text, suggests words and scores."""

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.convert import write_model
from bluejay.checkpoints.locate import locate
from bluejay.checkpoints.model_files import ModelFiles, open_model
from bluejay.core.errors import CheckpointError, UsageError
from bluejay.generation.generate import GenerationRequest, allowed_log_probabilities
from bluejay.generation.runner import Runner
from bluejay.generation.sampling_params import (
    DEFAULT_TEMPERATURE,
    DEFAULT_TOP_P,
    SamplingParams,
)
from bluejay.generation.speculation import Speculation, SpeculationMode
from bluejay.kernels.threads import use_threads
from bluejay.model.config import DecoderConfig
from bluejay.model.partition import partition
from bluejay.runs.compile_cache import configure_compile_cache
from bluejay.runs.loading import default_cache_dtype, load_params, require_cache_dtype
from bluejay.runs.mesh_loading import serving_mesh
from bluejay.runs.typed_model import TypedModel
from bluejay.text.completion import Completion, TextDelta, complete, prompt_logprobs
from bluejay.text.conventions import conventions_of
from bluejay.text.prompt import prompt_ids
from bluejay.text.suggestions import suggest
from bluejay.vocab.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Prompts = Prompt | Sequence[str] | Sequence[Sequence[int]]
DEFAULT_MAX_TOKENS = 64
_SEED_BITS = 31


class SamplingOptions(TypedDict, total=False):
    """How ids are chosen; `SamplingParams` documents and checks each."""

    temperature: float  # 0 is greedy; default DEFAULT_TEMPERATURE
    top_p: float  # default DEFAULT_TOP_P
    top_k: int
    min_p: float
    typical_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]
    seed: int | None  # None draws a new one


class GenerationOptions(SamplingOptions, total=False):
    """Options of `generate` and `stream`."""

    max_tokens: int  # default DEFAULT_MAX_TOKENS
    stop: str | Sequence[str] | None  # text ends before any of these strings
    # How several tokens are drafted and checked at once: "auto", "ngram" or "off". It changes the
    # speed and never the output; `generation.speculation.Speculation` documents it.
    speculation: SpeculationMode
    draft: "LanguageModel | None"  # a smaller model with the same tokenizer, to draft


class CompletionOptions(GenerationOptions, total=False):
    """Options of `complete` and `deltas`."""

    n: int  # samples per prompt
    logprobs: int | None  # likeliest alternatives that come with every token


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
        found = self._stored_tokenizer
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
        found = self._stored_tokenizer
        return np.ones(rows, np.bool_) if found is None else found.sampleable_mask(rows)

    @cached_property
    def _stored_tokenizer(self) -> Tokenizer | None:
        return self.files.tokenizer()

    def generate(self, prompt: str, **options: Unpack[GenerationOptions]) -> str:
        """The continuation of `prompt`, without it. Options and defaults: GenerationOptions.

        Without a seed every call draws a new one. Raises UsageError for an unknown option, a
        value out of its range, and a prompt that with its new tokens exceeds the context.
        """
        [completion] = self.complete(prompt, **options)
        return completion.text

    def stream(self, prompt: str, **options: Unpack[GenerationOptions]) -> Iterator[str]:
        """As `generate`, piece by piece: whole characters, never part of a stop string."""
        return (delta.text for delta in self.deltas(prompt, **options) if delta.text)

    def complete(
        self, prompt: Prompts, *, echo: bool = False, **options: Unpack[CompletionOptions]
    ) -> list[Completion]:
        """All samples of one prompt or of several, in order, with log probabilities.

        `echo` adds the prompts' tokens, scored too.
        """
        deltas = self.deltas(prompt, **options)
        done = [delta.completion for delta in deltas if delta.completion is not None]
        done.sort(key=lambda completion: (completion.prompt_index, completion.sample_index))
        return self._with_prompts(prompt, done, options.get("logprobs")) if echo else done

    def deltas(self, prompt: Prompts, **options: Unpack[CompletionOptions]) -> Iterator[TextDelta]:
        """New text of every sample as it becomes certain, each sample's Completion at its end."""
        params = sampling_params(options)
        stop_ids = conventions_of(self.tokenizer).stop_ids
        requests = [
            GenerationRequest(
                prompt_ids=ids,
                max_tokens=options.get("max_tokens", DEFAULT_MAX_TOKENS),
                sampling=params,
                stop_ids=stop_ids,
                num_samples=options.get("n", 1),
                num_alternatives=options.get("logprobs") or 0,
            )
            for ids in self._all_ids(prompt)
        ]
        stop = options.get("stop")
        stops = [stop] if isinstance(stop, str) else list(stop or ())
        return complete(
            self.runner,
            self.tokenizer,
            requests,
            stop=stops,
            allowed=self.allowed,
            speculation=self._speculation(options),
        )

    @cached_property
    def _typed(self) -> TypedModel:
        return TypedModel(self.runner, most=self.config.context_length)

    def suggest(self, prefix: str, k: int = 5) -> list[tuple[str, float]]:
        """The likeliest next words, or completions of a half-typed one, with probabilities."""
        found = suggest(self._typed, self.tokenizer, prefix, k=k)
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
        # The last id is read too, where it fits, as a server that echoes the text reads it: how a
        # text is cut into chunks, and so its rounding, follows from its length.
        read = ids if len(ids) <= self.config.context_length else ids[:-1]
        rows = self.runner.score(read)[len(context) - 1 : len(ids) - 1]
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

    def _speculation(self, options: CompletionOptions) -> Speculation:
        draft = options.get("draft")
        if draft is not None and not self.tokenizer.has_same_tokens(draft.tokenizer):
            raise UsageError(
                f"The draft model {draft.files.path} has other tokens "
                f"({draft.tokenizer.vocab_size:,}) than {self.files.path} "
                f"({self.tokenizer.vocab_size:,}): name a model with the same tokenizer."
            )
        mode = options.get("speculation", "auto")
        return Speculation(mode=mode, draft=None if draft is None else draft.runner)

    def _all_ids(self, prompt: Prompts) -> list[list[int]]:
        if isinstance(prompt, str):
            return [self.prompt_ids(prompt)]
        if all(isinstance(item, int) for item in prompt):
            return [[item for item in prompt if isinstance(item, int)]]
        return [self.prompt_ids(item) for item in prompt if not isinstance(item, int)]

    def _split_ids(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        start = list(conventions_of(self.tokenizer).document_start)
        if not context:
            return start, self.tokenizer.encode(continuation)
        # Trailing spaces of the context belong to the continuation's first token.
        stem = context.rstrip(" ")
        whole = self.tokenizer.encode(context + continuation)
        own = len(self.tokenizer.encode(stem))
        return (whole[:own], whole[own:]) if own else (start, whole)

    def _with_prompts(
        self, prompt: Prompts, done: list[Completion], logprobs: int | None
    ) -> list[Completion]:
        scored = [
            prompt_logprobs(
                self.runner,
                self.tokenizer,
                ids,
                allowed=self.allowed,
                num_alternatives=logprobs or 0,
            )
            for ids in self._all_ids(prompt)
        ]
        return [replace(item, prompt_tokens=scored[item.prompt_index]) for item in done]


def sampling_params(options: Mapping[str, object]) -> SamplingParams:
    """The sampling part of options, with our defaults and a new seed where none is given.

    Raises UsageError for an option that does not exist.
    """
    known = CompletionOptions.__annotations__
    for name in options:
        if name not in known:
            raise UsageError(f"There is no option {name!r}: there are {', '.join(known)}.")
    chosen: dict[str, Any] = {
        "temperature": DEFAULT_TEMPERATURE,
        "top_p": DEFAULT_TOP_P,
        **{name: options[name] for name in SamplingOptions.__annotations__ if name in options},
    }
    if chosen.get("seed") is None:
        chosen["seed"] = secrets.randbits(_SEED_BITS)
    return SamplingParams(**chosen)


def load(
    model: str | Path | None = None,
    *,
    dtype: str | None = None,
    cache_dtype: str | None = None,
    threads: int | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    mesh: Mapping[str, int] | None = None,
) -> LanguageModel:
    """Load a model by catalogue name, folder, file or hub `owner/name`; None is the best present.

    `dtype` is that of weights and activations: by default float32 on CPU, where quantized weights
    stay packed, and bfloat16 elsewhere. `cache_dtype` is that of kept keys and values: float32,
    float16 or int8, by default float16 for packed weights and float32 for others. `threads`
    compute in the whole process from now on, by default BLUEJAY_THREADS or every usable core.
    `on_progress` is called with parameters loaded and in all. `mesh` {"model": N} shares the
    decoder between N devices, each of which has its part of every matrix and of the cache
    (docs/decisions/0020); nothing stays packed there. Raises UsageError for other types or
    numbers, CheckpointError for a model that is missing, damaged or foreign, MemoryLimitError if
    it does not fit.
    """
    require_cache_dtype(cache_dtype)
    use_threads(threads)
    configure_compile_cache()
    files = open_model(locate(model))
    config, over = files.config, serving_mesh(mesh)
    params = load_params(files, dtype=dtype, on_tensor=on_progress, mesh=over)
    kept = cache_dtype or default_cache_dtype(params)
    if over is not None:
        config = partition(config, over.size).config
    return LanguageModel(files, Runner(params, config=config, cache_dtype=kept))
