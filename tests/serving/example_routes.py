"""Routes that show what the shell does: they echo, stream, wait and fail."""

import asyncio
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.responses import Response

from bluejay.core.errors import UsageError
from bluejay.generation.engine_requests import EngineStoppedError, QueueFullError
from bluejay.serving.routes import Call, Route, StrictBody, json_answer
from bluejay.serving.sse import Event, event_stream

SECRET = "the prompt that nobody else may read"


class Options(StrictBody):
    """A nested object with fields of its own."""

    colour: str = "red"
    weight: float = 1.0


class EchoBody(StrictBody):
    """One field of each kind."""

    prompt: str | list[str | int | list[int]] = ""
    max_tokens: int = 16
    temperature: float = 1.0
    logit_bias: dict[str, float] | None = None
    options: Options | None = None
    many: tuple[Options, ...] = ()
    anything: Any = None


class EchoAnswer(msgspec.Struct, frozen=True):
    """What was understood, and who asked."""

    prompt: str | list[str | int | list[int]]
    max_tokens: int
    tenant: str


class StreamBody(StrictBody):
    """`count` events, `pause` seconds apart; then a failure if there is a name of one."""

    count: int = 3
    pause: float = 0.0
    size: int = 1
    failure: str | None = None


class FailBody(StrictBody):
    """The name of a failure."""

    kind: str


class Panic(BaseException):
    """As libraries in Rust raise it."""


FAILURES = {
    "usage": lambda: UsageError("The value 7 is wrong: give 8."),
    "queue": lambda: QueueFullError("The queue holds 64 requests.", limit="queued_requests"),
    "stopped": lambda: EngineStoppedError("The engine has stopped."),
    "late": lambda: TimeoutError(SECRET),
    "bug": lambda: KeyError(SECRET),
    "memory": lambda: MemoryError(SECRET),
    "panic": lambda: Panic(SECRET),
}


@dataclass(frozen=True)
class Witness:
    """What has happened to the work of handlers."""

    started: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ended: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    events: list[int] = field(default_factory=list)


def example_routes(witness: Witness | None = None) -> list[Route]:
    """All of them; what happens to waiting ones is told to `witness`."""
    witness = witness or Witness()

    async def echo(call: Call[EchoBody]) -> Response:
        body = call.body
        call.record.add_prompt(num_tokens=3)
        call.record.add_tokens(2)
        return json_answer(
            EchoAnswer(prompt=body.prompt, max_tokens=body.max_tokens, tenant=call.tenant)
        )

    async def stream(call: Call[StreamBody]) -> Response:
        return event_stream(call, _events(call.body, witness), on_end=witness.ended.release)

    async def wait(_: Call[StreamBody]) -> Response:
        witness.started.release()
        try:
            await asyncio.sleep(3600)
        finally:
            witness.ended.release()
        return json_answer({})

    async def fail(call: Call[FailBody]) -> Response:
        raise FAILURES[call.body.kind]()

    async def model(call: Call[None]) -> Response:
        return json_answer({"id": call.request.path_params["model"]})

    return [
        Route(
            method="POST",
            path="/v1/echo",
            summary="Says what it heard.",
            handler=echo,
            body=EchoBody,
            answer=EchoAnswer,
            refused={"tools": "this server runs no functions."},
        ),
        Route(
            method="POST",
            path="/v1/stream",
            summary="Sends events.",
            handler=stream,
            body=StreamBody,
            is_body_optional=True,
            streams=True,
        ),
        Route(method="POST", path="/v1/wait", summary="Never ends.", handler=wait, body=StreamBody),
        Route(method="POST", path="/v1/fail", summary="Fails.", handler=fail, body=FailBody),
        Route(method="GET", path="/v1/models/{model:path}", summary="A name.", handler=model),
        Route(method="POST", path="/v1/poke", summary="Takes no body.", handler=_poke),
    ]


async def _poke(_: Call[None]) -> Response:
    return json_answer({})


async def _events(body: StreamBody, witness: Witness) -> AsyncGenerator[Event, None]:
    witness.started.release()
    for number in range(body.count):
        await asyncio.sleep(body.pause)
        witness.events.append(number)
        yield Event(data={"number": number, "text": "x" * body.size})
    if body.failure is not None:
        raise FAILURES[body.failure]()
