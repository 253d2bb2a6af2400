"""`/openapi.json`: the routes as the OpenAPI 3.1 document that tools read."""

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import msgspec
from starlette.responses import Response

from bluejay.serving.routes import Call, Route, json_answer

_PARAMETER = re.compile(r"\{(\w+)(?::(\w+))?\}")
_REFUSALS = {
    "400": "Something in the request is wrong; `param` names it.",
    "401": "The API key is missing or wrong.",
    "403": "The Host or Origin is not one of this server's.",
    "404": "There is no such path or model.",
    "405": "The path does not answer this method.",
    "431": "The headers are too large.",
    "503": "The server warms up, stops, or has too many connections.",
}
_BODY_REFUSALS = {
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not plain JSON.",
    "429": "The queue is full; `Retry-After` says when to try again.",
    "504": "The answer was not finished in time.",
}


class _ErrorDetails(msgspec.Struct, frozen=True, kw_only=True, rename={"kind": "type"}):
    message: str
    kind: str
    param: str | None
    code: str | None


class ErrorEnvelope(msgspec.Struct, frozen=True, kw_only=True):
    """What every refusal and failure looks like."""

    error: _ErrorDetails


def openapi_route(others: Sequence[Route], *, needs_key: bool) -> Route:
    """The route that describes `others` and itself. TypeError for a type that has no schema."""

    async def answer(_: Call[None]) -> Response:
        return json_answer(document)

    route = Route(
        method="GET",
        path="/openapi.json",
        summary="This description.",
        handler=answer,
        answer=dict[str, Any],
        needs_engine=False,
    )
    document = openapi_document([*others, route], needs_key=needs_key)
    return route


def openapi_document(routes: Sequence[Route], *, needs_key: bool) -> dict[str, Any]:
    """The whole description, of a server that has keys or of one that has none."""
    kinds = [kind for route in routes for kind in (route.body, route.answer) if kind is not None]
    kinds.append(ErrorEnvelope)
    found, components = msgspec.json.schema_components(
        kinds, ref_template="#/components/schemas/{name}"
    )
    schemas = dict(zip(map(_type_key, kinds), found, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        path = _PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(path, {})[route.method.lower()] = _operation(route, schemas)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Bluejay", "version": version("bluejay")},
        "paths": paths,
        "components": {
            "schemas": dict(components),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{"key": []}] if needs_key else [],
    }


def _type_key(kind: Any) -> str:
    return repr(kind)


def _operation(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    refusals = _REFUSALS | (_BODY_REFUSALS if route.method == "POST" else {})
    operation: dict[str, Any] = {
        "summary": route.summary,
        "responses": {"200": _success(route, schemas)}
        | {status: _refusal(text, schemas) for status, text in refusals.items()},
    }
    if route.body is not None:
        operation["requestBody"] = {
            "required": not route.is_body_optional,
            "content": {"application/json": {"schema": schemas[_type_key(route.body)]}},
        }
    if parameters := [_parameter(*match) for match in _PARAMETER.findall(route.path)]:
        operation["parameters"] = parameters
    if route.is_open:
        operation["security"] = []
    return operation


def _success(route: Route, schemas: dict[str, Any]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    if route.answer is not None:
        content[route.media_type] = {"schema": schemas[_type_key(route.answer)]}
    else:
        content[route.media_type] = {}
    if route.streams:
        content["text/event-stream"] = {}
    return {"description": "The answer.", "content": content}


def _refusal(text: str, schemas: dict[str, Any]) -> dict[str, Any]:
    content = {"application/json": {"schema": schemas[_type_key(ErrorEnvelope)]}}
    return {"description": text, "content": content}


def _parameter(name: str, kind: str) -> dict[str, Any]:
    schema = {"type": "integer" if kind == "int" else "string"}
    return {"name": name, "in": "path", "required": True, "schema": schema}
