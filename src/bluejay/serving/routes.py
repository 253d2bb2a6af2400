"""A route of the server as a plain value, and the call that its handler answers."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from bluejay.serving.connection import Connection
from bluejay.serving.record import RequestRecord

Body = TypeVar("Body")


class StrictBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What bodies derive from: an unknown field is refused by its name."""


@dataclass(frozen=True, kw_only=True)
class Call(Generic[Body]):
    """One request that has passed every check of the shell.

    `body` is what `Route.body` asks for, decoded, or None. `id` cannot be guessed: whoever has it
    made the request. `tenant` is a hash of the key, "" when the server has none. The handler counts
    tokens in `record`; `connection` is for `bluejay.serving.sse`.
    """

    body: Body
    request: Request
    id: str
    tenant: str
    record: RequestRecord
    connection: Connection


Handler = Callable[[Call[Any]], Awaitable[Response]]


@dataclass(frozen=True, kw_only=True)
class Route:
    """One method of one path. `/openapi.json` and the router are both made from these.

    `path` may have parameters in Starlette's form, `{model:path}`, found in
    `call.request.path_params`. `answer` is any type that msgspec has a schema for, None for no
    promise, and `media_type` what a whole answer is sent as. `streams`: events may be the answer
    instead, when the body asks for it. `refused` are fields
    that clients of this interface know and this server lacks, each with the reason why or what to
    use instead. An optional body may be left out and is then `{}`. `is_open`: no key is needed.
    Without `needs_engine` the route also answers while the engine warms up, drains or has failed.
    `is_queued`: calls wait in the engine's queue, and are refused unread where it is full.
    `is_probe`: what watches over the server asks it all the time.
    """

    method: Literal["GET", "POST"]
    path: str
    summary: str
    handler: Handler
    body: type[msgspec.Struct] | None = None
    is_body_optional: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    answer: Any = None
    media_type: str = "application/json"
    streams: bool = False
    is_open: bool = False
    needs_engine: bool = True
    is_queued: bool = False
    is_probe: bool = False


def json_answer(value: Any, *, headers: Mapping[str, str] | None = None) -> Response:
    """200 with `value` as JSON: Structs, dicts, lists, numbers, strings."""
    content = msgspec.json.encode(value)
    return Response(content, headers=headers, media_type="application/json")
