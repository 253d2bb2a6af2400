"""From a method and a path to a route."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from starlette.routing import compile_path

from bluejay.serving.errors import ApiError
from bluejay.serving.routes import Route


@dataclass(frozen=True, kw_only=True)
class _Path:
    pattern: "re.Pattern[str]"
    converters: dict[str, Any]
    methods: dict[str, Route] = field(default_factory=dict)

    def parameters(self, path: str) -> dict[str, Any] | None:
        match = self.pattern.fullmatch(path)
        if match is None:
            return None
        texts = match.groupdict()
        return {name: self.converters[name].convert(text) for name, text in texts.items()}


class Router:
    """The routes by path, in the order given. ValueError for two of one method and path."""

    def __init__(self, routes: Sequence[Route]) -> None:
        self._paths: dict[str, _Path] = {}
        for route in routes:
            if route.path not in self._paths:
                pattern, _, converters = compile_path(route.path)
                self._paths[route.path] = _Path(pattern=pattern, converters=converters)
            methods = self._paths[route.path].methods
            if route.method in methods:
                raise ValueError(f"Two routes answer {route.method} {route.path}.")
            methods[route.method] = route

    def find(self, method: str, path: str) -> tuple[Route, dict[str, Any]]:
        """The route with its path's parameters; HEAD is a GET. ApiError 404 or 405."""
        wanted = "GET" if method == "HEAD" else method
        allowed: list[str] = []
        for known in self._paths.values():
            parameters = known.parameters(path)
            if parameters is not None:
                if wanted in known.methods:
                    return known.methods[wanted], parameters
                allowed += known.methods
        if not allowed:
            raise ApiError(
                404, f"Nothing is at {path[:100]!r}: /openapi.json lists what is.", code="not_found"
            )
        methods = sorted({*allowed, *(["HEAD"] if "GET" in allowed else [])})
        raise ApiError(
            405,
            f"{path[:100]!r} does not answer {method[:20]}, but {' and '.join(methods)}.",
            code="method_not_allowed",
            headers={"allow": ", ".join(methods)},
        )
