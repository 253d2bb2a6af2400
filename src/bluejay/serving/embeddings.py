"""`POST /v1/embeddings`: the model's last hidden states as vectors of length 1."""

import base64
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated, Any, Literal, Protocol

import msgspec
import numpy as np
from msgspec import Meta
from numpy.typing import NDArray
from starlette.responses import Response

from bluejay.serving.desk import Desk, OneThread
from bluejay.serving.errors import ApiError
from bluejay.serving.prompts import read_prompts
from bluejay.serving.routes import Call, Route, StrictBody, json_answer
from bluejay.serving.service import TextService
from bluejay.serving.sse import until_disconnect

Pooling = Literal["mean", "last"]


class Embedder(Protocol):
    """What makes vectors of ids. `embed` may be called from several threads at once."""

    @property
    def width(self) -> int:
        """D, the length of a vector."""

    def embed(
        self, ids: Sequence[int], *, pooling: Pooling, tenant: str, adapter: str | None
    ) -> NDArray[np.float32]:
        """[D] float32: the mean of the last hidden states of all positions, or the last one's.

        Raises QueueFullError and EngineStoppedError as an engine does.
        """


class EmbeddingsBody(StrictBody, frozen=True, kw_only=True):
    """Texts or ids. null is as if absent."""

    input: Annotated[
        str | list[str | int | list[int]],
        Meta(description="A text, a list of texts, the ids of one, or a list of such lists."),
    ]
    model: str | None = None
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Meta(description="Only the model's own.")] | None = None
    pooling: (
        Annotated[
            Pooling,
            Meta(description="The mean over all tokens (if absent), or what the last one has."),
        ]
        | None
    ) = None
    user: Annotated[str, Meta(description="Taken, and not used for anything.")] | None = None


class Embedding(msgspec.Struct, frozen=True, kw_only=True):
    """A vector: numbers, or its little-endian float32 bytes in base64."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Tokens that were read."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingsAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Vectors in the order of the inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: EmbeddingsUsage


EmbeddingDesk = Desk[Callable[[], NDArray[np.float32]], NDArray[np.float32]]


def embedding_routes(service: TextService, embedder: Embedder) -> list[Route]:
    """The route that makes vectors."""
    desk: EmbeddingDesk = Desk(service.limits, "embeddings", OneThread("embeddings"))
    return [
        Route(
            method="POST",
            path="/v1/embeddings",
            summary="Vectors of texts.",
            handler=partial(_embed, service, embedder, desk),
            body=EmbeddingsBody,
            answer=EmbeddingsAnswer,
        )
    ]


async def _embed(
    service: TextService, embedder: Embedder, desk: EmbeddingDesk, call: Call[EmbeddingsBody]
) -> Response:
    body = call.body
    adapter = service.adapter_of(body.model)
    _check_dimensions(body.dimensions, embedder.width)
    inputs = await _inputs(service, body)
    make = partial(
        embedder.embed, pooling=body.pooling or "mean", tenant=call.tenant, adapter=adapter
    )
    with desk.place():
        vectors = await until_disconnect(call, _vectors(call, desk, make, inputs))
    count = sum(len(ids) for ids in inputs)
    is_base64 = body.encoding_format == "base64"
    data = [
        Embedding(object="embedding", index=index, embedding=_encoded(vector, is_base64))
        for index, vector in enumerate(vectors)
    ]
    return json_answer(
        EmbeddingsAnswer(
            object="list",
            data=data,
            model=body.model or service.model,
            usage=EmbeddingsUsage(prompt_tokens=count, total_tokens=count),
        )
    )


async def _vectors(
    call: Call[Any],
    desk: EmbeddingDesk,
    make: "partial[NDArray[np.float32]]",
    inputs: Sequence[Sequence[int]],
) -> list[NDArray[np.float32]]:
    """One after another, so that a client that leaves costs at most one more."""
    found = []
    for ids in inputs:
        vector = await desk.turn(partial(make, ids), tenant=call.tenant)
        found.append(_normalized(vector))
        call.record.add_prompt(num_tokens=len(ids))
    return found


async def _inputs(service: TextService, body: EmbeddingsBody) -> list[tuple[int, ...]]:
    """The ids of every input, each within the context."""
    try:
        prompts = await read_prompts(service, body.input)
    except ApiError as error:
        # What reads prompts calls them so.
        message = error.message.replace("prompt", "input", 1)
        raise ApiError(error.status, message, param="input", code=error.code) from None
    for index, prompt in enumerate(prompts):
        if len(prompt.ids) > service.context_length:
            raise ApiError(
                400,
                f"input {index} has {len(prompt.ids)} tokens, and the context holds"
                f" {service.context_length}: shorten it.",
                param="input",
                code="context_length_exceeded",
            )
    return [prompt.ids for prompt in prompts]


def _check_dimensions(dimensions: int | None, width: int) -> None:
    if dimensions is not None and dimensions != width:
        raise ApiError(
            400,
            f"dimensions is {dimensions}, but this model's vectors have {width} and were not"
            " trained to be cut: leave it out.",
            param="dimensions",
        )


def _normalized(vector: NDArray[np.float32]) -> NDArray[np.float32]:
    """The same direction, length 1."""
    exact = vector.astype(np.float64)
    length = float(np.linalg.norm(exact))
    if not np.isfinite(length) or length == 0:
        raise ApiError(
            500,
            "The model gives hidden states that are no direction, so its weights are damaged or"
            " overflow in their data type: load it in float32 or fetch it again.",
            code="engine_failure",
            headers={"x-should-retry": "false"},
        )
    return (exact / length).astype(np.float32)


def _encoded(vector: NDArray[np.float32], is_base64: bool) -> list[float] | str:
    if is_base64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    numbers: list[float] = vector.tolist()
    return numbers
