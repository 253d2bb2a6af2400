"""A live server of the text routes, and the clients that talk to it."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from openai import OpenAI

from bluejay.generation.engine import SlotEngine
from bluejay.generation.engine_requests import Engine, EngineLimits
from bluejay.generation.generate import allowed_log_probabilities
from bluejay.model.presets import gptj_config
from bluejay.runs.language_model import load
from bluejay.serving.access import Access
from bluejay.serving.app import App
from bluejay.serving.chat import chat_routes
from bluejay.serving.completions import completion_routes
from bluejay.serving.limits import Limits
from bluejay.serving.models import model_routes
from bluejay.serving.responses import response_routes
from bluejay.serving.routes import Route
from bluejay.serving.service import TextService
from bluejay.serving.tokens import token_routes
from bluejay.text.chat_templates import PLAIN
from bluejay.vocab.roles import SpecialRoles
from bluejay.vocab.tokenizer import Tokenizer
from bluejay.vocab.tokenizer_json import build_backend
from serving.fake_engine import Answer as EngineAnswer
from serving.fake_engine import FakeEngine, TinyModel
from serving.live_server import Answer, Raw, live_server, make_app, quick_limits
from tokenizers_for_tests import small_document

NUM_ROWS = 264
END = 259
KEY = "test-key"
WARM_UP_SECONDS = 300.0


@cache
def small_tokenizer() -> Tokenizer:
    """The 256 bytes, " t", "he", " the", and `<|endoftext|>` (259)."""
    roles = SpecialRoles(bos=END, eos=END, document_start=END, stops=frozenset([END]))
    return Tokenizer(build_backend(small_document(), where="small"), roles=roles)


def text_service(engine: Engine, **given: Any) -> TextService:
    """A service of the small tokenizer; the model is named `owner/small`."""
    defaults: dict[str, Any] = {
        "tokenizer": small_tokenizer(),
        "config": gptj_config(1, 64, 2, rotary_dim=8, vocab_size=NUM_ROWS),
        "model": "owner/small",
        "aliases": ("small",),
        "adapters": ("pirate",),
        "chat_template": PLAIN,
        "created": 1_700_000_000,
    }
    return TextService(engine=engine, **(defaults | given))


def text_routes(service: TextService) -> list[Route]:
    """All text routes of a service."""
    makers = (completion_routes, chat_routes, response_routes, model_routes, token_routes)
    return [route for make in makers for route in make(service)]


Reference = Callable[[Sequence[int]], NDArray[np.floating]]
"""[V] log probabilities of the id behind these: what a served model must agree with."""


@dataclass(frozen=True, kw_only=True)
class TextServer:
    """A live server, what it serves, OpenAI's client, and one that sends what it likes."""

    service: TextService
    client: OpenAI
    raw: Raw
    reference: "Reference | None" = None

    def post(self, path: str, **body: Any) -> Answer:
        """A body as it is, as JSON."""
        return self.raw.post(path, json.dumps(body).encode())

    def refusal(self, path: str, **body: Any) -> dict[str, Any]:
        """The error that answers a body, with its status."""
        answer = self.post(path, **body)
        error: dict[str, Any] = json.loads(answer.body)["error"]
        return error | {"status": answer.status}


@contextmanager
def serve_text(
    service: TextService, *, reference: Reference | None = None, **given: Any
) -> Iterator[TextServer]:
    """A live server of `service`; `given` is for the application."""
    app: App = make_app(text_routes(service), status=service.engine.status, **given)
    with live_server(app) as listening:
        url = f"http://127.0.0.1:{listening.port}/v1"
        with OpenAI(base_url=url, api_key=KEY, max_retries=0) as client:
            raw = Raw(port=listening.port)
            yield TextServer(service=service, client=client, raw=raw, reference=reference)


@contextmanager
def serve_answers(
    answer: EngineAnswer,
    *,
    engine_limits: EngineLimits | None = None,
    limits: Limits | None = None,
    access: Access | None = None,
    **given: Any,
) -> Iterator[tuple[TextServer, FakeEngine]]:
    """A live server of an engine that answers as it is told; `given` is of the service."""
    engine = FakeEngine(answer, limits=engine_limits)
    chosen = limits or quick_limits()
    service = text_service(engine, limits=chosen, **given)
    try:
        with serve_text(service, limits=chosen, access=access or Access()) as server:
            yield server, engine
    finally:
        engine.close()


@contextmanager
def serve_tiny() -> Iterator[TextServer]:
    """The tiny model behind a fake engine."""
    model = TinyModel(small_tokenizer(), NUM_ROWS)
    engine = FakeEngine(model.answer)
    try:
        service = text_service(engine)
        with serve_text(service, reference=lambda ids: model.logprobs(ids[-1])) as server:
            yield server
    finally:
        engine.close()


@contextmanager
def serve_bundled() -> Iterator[TextServer]:
    """The model of the package behind the real engine."""
    model = load("bluejay-tiny")
    limits = EngineLimits(num_slots=4, context_length=256)
    engine = SlotEngine(model.runner, allowed=model.allowed, limits=limits).start()
    deadline = time.monotonic() + WARM_UP_SECONDS
    while not engine.status().is_ready:
        assert time.monotonic() < deadline
        time.sleep(0.05)

    def reference(ids: Sequence[int]) -> NDArray[np.float32]:
        [row] = allowed_log_probabilities(model.logits(ids)[-1:], model.allowed)
        return np.asarray(row)

    try:
        service = text_service(engine, tokenizer=model.tokenizer, config=model.config, adapters=())
        with serve_text(service, reference=reference) as server:
            yield server
    finally:
        engine.stop()


SERVED = {"tiny": serve_tiny, "bundled": serve_bundled}
"""What the suites that know nothing of the engine run against."""
