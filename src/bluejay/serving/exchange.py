"""One request and its answer: the checks, in their order, and what every answer carries."""

import secrets
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from bluejay.serving.access import Access, Headers, cors_headers, preflight_headers
from bluejay.serving.body import BodyReader, decode_body
from bluejay.serving.connection import Connection
from bluejay.serving.errors import (
    CLIENT_GONE_STATUS,
    NOT_FAILURES,
    ApiError,
    ClientGoneError,
    api_error,
    error_response,
)
from bluejay.serving.lifecycle import Lifecycle
from bluejay.serving.limits import ConnectionLimits, Limits
from bluejay.serving.logs import log_failure, log_request
from bluejay.serving.metrics import Metrics
from bluejay.serving.places import Place, place_of
from bluejay.serving.record import RequestRecord
from bluejay.serving.router import Router
from bluejay.serving.routes import Call, Route
from bluejay.serving.sse import until_disconnect

ALWAYS = {
    "content-security-policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none';"
        " form-action 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
"""On every answer, unless the route's own says otherwise."""


class Shell(Protocol):
    """What an exchange needs of the application."""

    access: Access
    limits: Limits
    lifecycle: Lifecycle
    metrics: Metrics
    router: Router

    def readiness(self) -> ApiError | None: ...

    def require_place(self, num_ahead: int = 0) -> None: ...

    def return_seconds(self) -> int: ...


class Exchange:
    """One request on its way through the server."""

    def __init__(self, shell: Shell, scope: Scope, receive: Receive, send: Send) -> None:
        self._shell = shell
        self._scope = scope
        self._receive = receive
        self._send = send
        self._headers: Headers = scope["headers"]
        self._record = _record(place_of(scope))
        self._body = BodyReader(receive, self._headers, shell.limits.connection)
        self._extra: dict[str, str] = {"x-request-id": self._record.id}
        self._route: Route | None = None
        self._status = 0
        self._connection = Connection(receive, lifecycle=shell.lifecycle, limits=shell.limits)

    async def run(self) -> None:
        """Answer. Nothing is raised, and one line is logged."""
        try:
            response = await self._response()
            if not await self._body.skip():
                self._extra["connection"] = "close"
            await response(self._scope, self._receive, self._send_marked)
        except ClientGoneError:
            self._status = CLIENT_GONE_STATUS
        except NOT_FAILURES:
            raise
        except BaseException as error:
            # The answer has begun: to break it off is all that is left.
            log_failure(error, request_id=self._record.id)
            self._record.error = "internal_error"
        finally:
            self._record.on_placed()
            await self._connection.close()
            self._note()

    async def _response(self) -> Response:
        try:
            return await self._checked_response()
        except (ClientGoneError, *NOT_FAILURES):
            raise
        except BaseException as error:
            told = api_error(error)
            if told.status == 500 and not isinstance(error, ApiError):
                log_failure(error, request_id=self._record.id)
            if told.status == 429:
                told.headers["retry-after"] = str(self._shell.return_seconds())
            return error_response(told)

    async def _checked_response(self) -> Response:
        shell, scope = self._shell, self._scope
        check_head(scope, shell.limits.connection)
        host = shell.access.check_host(self._headers)
        origin = shell.access.check_origin(self._headers, host=host)
        if origin is not None:
            if scope["method"] == "OPTIONS":
                return Response(
                    status_code=204, headers=preflight_headers(self._headers, origin=origin)
                )
            self._extra |= cors_headers(origin)
        route = self._find_route()
        # Without a key nobody learns which paths there are.
        is_open = isinstance(route, Route) and route.is_open
        tenant = "" if is_open else shell.access.tenant(self._headers)
        if isinstance(route, ApiError):
            raise route
        if route.needs_engine and (problem := shell.readiness()):
            raise problem
        if route.is_queued:
            shell.require_place()
        call = Call(
            body=await self._decoded_body(route),
            request=Request(scope),
            id=self._record.id,
            tenant=tenant,
            record=self._record,
            connection=self._connection,
        )
        return await until_disconnect(call, _handled(route, call))

    def _find_route(self) -> Route | ApiError:
        """The route, with its path's parameters put where Starlette looks, or why there is none."""
        try:
            found = self._shell.router.find(self._scope["method"], self._scope["path"])
        except ApiError as error:
            return error
        self._route, self._scope["path_params"] = found
        return self._route

    async def _decoded_body(self, route: Route) -> Any:
        if route.body is None:
            return None
        if self._body.is_complete and route.is_body_optional:
            return decode_body(b"{}", route.body)
        return decode_body(await self._body.read(), route.body, route.refused)

    async def _send_marked(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            if self._shell.lifecycle.is_draining:
                self._extra["connection"] = "close"
            present = {name for name, _ in message["headers"]}
            message["headers"] = [
                *message["headers"],
                *(
                    (name.encode("ascii"), value.encode("latin-1"))
                    for name, value in (ALWAYS | self._extra).items()
                    if name.encode("ascii") not in present
                ),
            ]
        await self._send(message)

    def _note(self) -> None:
        method, path = self._scope["method"], self._scope["path"]
        log_request(
            self._record,
            method=method,
            path=path,
            status=self._status,
            is_probe=self._route is not None and self._route.is_probe,
        )
        generates = self._record.new_tokens > 0 and self._status == 200
        self._shell.metrics.request(
            method=method if self._route else "other",
            path=self._route.path if self._route else "other",
            status=self._status,
            seconds=self._record.seconds() if generates else None,
        )


def _record(place: Place | None) -> RequestRecord:
    request_id = secrets.token_hex(16)
    if place is None:
        return RequestRecord(id=request_id)
    return RequestRecord(id=request_id, started=place.since, on_placed=place.free)


async def _handled(route: Route, call: Call[Any]) -> Response:
    return await route.handler(call)


def check_head(scope: Scope, limits: ConnectionLimits) -> None:
    """Refuse headers that are too large, and requests that two readers may understand differently.

    The parser bounds only what it has not yet read completely.
    """
    headers: Headers = scope["headers"]
    limits.check("header_count", len(headers), status=431)
    num_bytes = sum(len(name) + len(value) + 4 for name, value in headers)
    num_bytes += len(scope.get("raw_path") or b"") + len(scope["query_string"])
    limits.check("header_bytes", num_bytes, status=431)
    names = [name for name, _ in headers]
    if b"transfer-encoding" in names and b"content-length" in names:
        raise ApiError(
            400,
            "A request has either Content-Length or Transfer-Encoding, not both.",
            headers={"connection": "close"},
        )
    if scope["http_version"] not in ("1.0", "1.1"):
        raise ApiError(400, f"This server speaks HTTP/1.1, not {scope['http_version'][:10]!r}.")
    if not scope["path"].startswith("/"):
        raise ApiError(400, "This is no proxy: ask for a path that begins with '/'.")
