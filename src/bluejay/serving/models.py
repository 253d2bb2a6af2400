"""`GET /v1/models` and `/v1/models/{id}`: the names that a request may give."""

from functools import partial
from typing import Literal

import msgspec
from starlette.responses import Response

from bluejay.serving.routes import Call, Route, json_answer
from bluejay.serving.service import TextService


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """A model, or with a `parent` fine-tuned weights of it. `max_model_len` is the context's
    length in tokens, under the name that other servers gave it."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int
    parent: str | None = None


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All names, the model's own first."""

    object: Literal["list"]
    data: list[ModelCard]


def model_routes(service: TextService) -> list[Route]:
    """The routes that say what is served."""
    return [
        Route(
            method="GET",
            path="/v1/models",
            summary="The models that are served.",
            handler=partial(_list, service),
            answer=ModelList,
            needs_engine=False,
        ),
        Route(
            method="GET",
            path="/v1/models/{model:path}",
            summary="One model.",
            handler=partial(_retrieve, service),
            answer=ModelCard,
            needs_engine=False,
        ),
    ]


async def _list(service: TextService, call: Call[None]) -> Response:
    names = [service.model, *service.adapters]
    return json_answer(ModelList(object="list", data=[_card(service, name) for name in names]))


async def _retrieve(service: TextService, call: Call[None]) -> Response:
    name: str = call.request.path_params["model"]
    service.adapter_of(name)
    return json_answer(_card(service, name))


def _card(service: TextService, name: str) -> ModelCard:
    return ModelCard(
        id=name,
        object="model",
        created=service.created,
        owned_by="bluejay",
        max_model_len=service.context_length,
        parent=service.model if name in service.adapters else None,
    )
