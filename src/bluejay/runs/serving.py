"""A model, its engine and its routes, put together as one application."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from bluejay.core.errors import UsageError
from bluejay.generation.compile_count import num_compiled_anywhere
from bluejay.generation.engine import SlotEngine
from bluejay.generation.engine_requests import EngineLimits, EngineStatus
from bluejay.generation.pulse import Pulse
from bluejay.generation.runner import Runner
from bluejay.mesh.programs import bytes_per_device
from bluejay.model.config import DecoderConfig
from bluejay.model.params import DecoderParams
from bluejay.model.specs import decoder_specs, parameter_count
from bluejay.runs.language_model import LanguageModel
from bluejay.runs.serving_embedder import ModelEmbedder
from bluejay.runs.serving_memory import require_memory, slots_bytes
from bluejay.runs.typed_model import MOST_TYPED, TypedModel, typed_bytes
from bluejay.serving.access import Access
from bluejay.serving.app import App
from bluejay.serving.chat import chat_routes
from bluejay.serving.completions import completion_routes
from bluejay.serving.embeddings import embedding_routes
from bluejay.serving.front_page import front_page_route
from bluejay.serving.infill import infill_routes
from bluejay.serving.kobold import kobold_routes
from bluejay.serving.limits import Limits
from bluejay.serving.metrics import Metrics
from bluejay.serving.models import model_routes
from bluejay.serving.responses import response_routes
from bluejay.serving.routes import Route
from bluejay.serving.service import TextService
from bluejay.serving.suggest import suggest_routes
from bluejay.serving.tokens import token_routes
from bluejay.text.chat_templates import default_template
from bluejay.text.words import token_words

OnProgram = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class MeshShare:
    """So many devices share the model, and each has so many bytes of its weights."""

    num_devices: int
    weight_bytes: int

    @classmethod
    def of(cls, runner: Runner) -> "MeshShare | None":
        """None where the model is on one device."""
        if runner.mesh is None:
            return None
        return cls(num_devices=runner.mesh.size, weight_bytes=bytes_per_device(runner.params))


@dataclass(frozen=True, kw_only=True)
class ServingPlan:
    """What is served and how. `name` is the model's; `created` is in seconds since 1970.

    `adapters` are loaded already (`serving_adapters.load_adapters`).
    """

    name: str
    created: int
    engine: EngineLimits = field(default_factory=EngineLimits)
    limits: Limits = field(default_factory=Limits)
    access: Access = field(default_factory=Access)
    aliases: Sequence[str] = ()
    adapters: Mapping[str, DecoderParams] = field(default_factory=dict)


class ModelServer:
    """An application around a model, whose engine has to be started.

    Raises MemoryLimitError before anything is made that does not fit, and UsageError for names that
    are given twice and a context that the model does not have.
    """

    def __init__(self, model: LanguageModel, plan: ServingPlan) -> None:
        _require_different(plan)
        runner = model.runner
        require_memory(
            runner.config,
            plan.engine,
            runner.cache_dtype,
            runner.mesh,
            words_bytes=typed_bytes(runner, most=MOST_TYPED),
        )
        self.plan = plan
        self.slots_bytes = slots_bytes(runner.config, plan.engine, runner.cache_dtype)
        self.num_parameters = parameter_count(decoder_specs(model.config))
        self.share = MeshShare.of(runner)
        self.engine = SlotEngine(
            runner, allowed=model.allowed, limits=plan.engine, adapters=plan.adapters
        )
        runners = {None: runner} | {
            name: Runner(params, config=runner.config, cache_dtype=runner.cache_dtype)
            for name, params in plan.adapters.items()
        }
        self._embedder = ModelEmbedder(runners, context_length=plan.engine.context_length)
        self._words, self._tokenizer = TypedModel(runner, most=MOST_TYPED), model.tokenizer
        self._num_compiled = 0
        metrics = Metrics(self.status)
        service = self._service(model, metrics)
        routes = _routes(service, self._embedder, self._words)
        front = front_page_route(routes, needs_key=bool(plan.access.keys_sha256))
        self.app = App(
            [front, *routes],
            access=plan.access,
            limits=plan.limits,
            status=self.status,
            require_place=self.engine.require_place,
            metrics=metrics,
        )

    def start(self, on_program: OnProgram) -> None:
        """Warm up on the engine's thread; `on_program` hears how many programs are done."""
        # The tables of words take a fifth of a second, which nobody's first letter is to wait for.
        tables = partial(token_words, self._tokenizer)
        others: list[Callable[[], object]] = [
            self._embedder.warm_up,
            tables,
            *self._words.warm_up_runs(),
        ]

        def report(done: int, total: int) -> None:
            on_program(done, total + len(others))
            if done < total:
                return
            for number, run in enumerate(others, 1):
                run()
                on_program(done + number, total + len(others))
            self._num_compiled = num_compiled_anywhere()

        num_compiled_anywhere()
        self.engine.start(report)

    @property
    def pulses(self) -> dict[str, Pulse]:
        """Of all that calls the device once the server is ready, by what it is called."""
        return {
            "The engine": self.engine.pulse,
            "What makes embeddings": self._embedder.pulse,
            "What suggests words": self._words.pulse,
        }

    def status(self) -> EngineStatus:
        """The engine's, where programs that other threads compile count too."""
        status = self.engine.status()
        since_ready = num_compiled_anywhere() - self._num_compiled if status.is_ready else 0
        return replace(status, recompiles=max(status.recompiles, since_ready))

    def stop(self, seconds: float) -> bool:
        """End the engine, whatever runs; whether it has ended within that time."""
        return self.engine.stop(seconds)

    def _service(self, model: LanguageModel, metrics: Metrics) -> TextService:
        plan = self.plan
        return TextService(
            engine=self.engine,
            tokenizer=model.tokenizer,
            config=model.config,
            model=plan.name,
            chat_template=default_template(model.tokenizer, model=plan.name),
            created=plan.created,
            aliases=tuple(plan.aliases),
            adapters=tuple(plan.adapters),
            limits=plan.limits,
            times=metrics,
        )


def engine_limits(
    config: DecoderConfig, *, context_length: int | None = None, **given: int
) -> EngineLimits:
    """The limits that were given; the context by default the model's, up to 2,048 tokens.

    Raises UsageError for less than one of anything and for more context than the model has.
    """
    if context_length is None:
        context_length = min(EngineLimits.context_length, config.context_length)
    if context_length > config.context_length:
        raise UsageError(
            f"--context is {context_length:,}, and the model was trained for"
            f" {config.context_length:,} tokens: give at most that."
        )
    return EngineLimits(context_length=context_length, **given)


def _routes(service: TextService, embedder: ModelEmbedder, words: TypedModel) -> list[Route]:
    return [
        *completion_routes(service),
        *chat_routes(service),
        *response_routes(service),
        *model_routes(service),
        *embedding_routes(service, embedder),
        *suggest_routes(service, words),
        *token_routes(service),
        *infill_routes(service),
        *kobold_routes(service),
    ]


def _require_different(plan: ServingPlan) -> None:
    names = [plan.name, *plan.aliases, *plan.adapters]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"The name {name!r} stands for two models: give another.")
