"""What a client is told when its request fails: OpenAI's envelope and one plain sentence."""

import asyncio
from collections.abc import Mapping

import msgspec
from starlette.responses import Response

from bluejay.core.errors import BluejayError
from bluejay.generation.engine_requests import EngineStoppedError, Failed, QueueFullError

CLIENT_GONE_STATUS = 499
"""Only ever logged: nobody is there to read it."""

NOT_FAILURES = (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit)
"""Whatever else is raised is told to the client; a panic of a library in Rust is no `Exception`."""

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    CLIENT_GONE_STATUS: "client_gone",
}
_RETRY_LATER = {"retry-after": "1", "x-should-retry": "true"}


class ApiError(Exception):
    """A refusal or failure with its status. `param` names the field, `code` is for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def envelope(self) -> dict[str, dict[str, str | None]]:
        """`{"error": {"message", "type", "param", "code"}}`, also the last frame of a stream."""
        kind = _TYPES.get(self.status) or (
            "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {
            "error": {
                "message": self.message,
                "type": kind,
                "param": self.param,
                "code": self.code,
            }
        }


class ClientGoneError(ApiError):
    """The client has hung up, so nothing is sent."""

    def __init__(self) -> None:
        super().__init__(CLIENT_GONE_STATUS, "The client has hung up.")


def api_error(error: BaseException) -> ApiError:
    """What the client is told of `error`. Of an unexpected one it learns nothing but the status."""
    match error:
        case ApiError():
            return error
        case QueueFullError():
            return queue_full(str(error), code=f"{error.limit}_full")
        case EngineStoppedError():
            return unavailable(str(error))
        case BluejayError():
            return ApiError(400, str(error))
        case TimeoutError():
            return ApiError(504, "The request took longer than the server allows.", code="timeout")
        case _:
            return ApiError(
                500,
                "Something went wrong inside the server. Its log says what, under this request's"
                " x-request-id.",
                code="internal_error",
                # The clients of OpenAI send a 500 twice more: triple load for what fails again.
                headers={"x-should-retry": "false"},
            )


def queue_full(message: str, *, code: str) -> ApiError:
    """429: the same request may find a place later."""
    return ApiError(429, message, code=code, headers=_RETRY_LATER)


def unavailable(message: str, *, code: str = "unavailable") -> ApiError:
    """503: the same request may succeed later, or at another server."""
    return ApiError(503, message, code=code, headers=_RETRY_LATER)


def engine_failure(event: Failed) -> ApiError:
    """What the client is told of a sample that the engine could not finish."""
    if event.is_transient:
        return unavailable(event.message, code="engine_failure")
    headers = {"x-should-retry": "false"}
    return ApiError(500, event.message, code="engine_failure", headers=headers)


def error_response(error: ApiError) -> Response:
    """The answer that carries `error`."""
    return Response(
        msgspec.json.encode(error.envelope()),
        status_code=error.status,
        headers=error.headers,
        media_type="application/json",
    )
