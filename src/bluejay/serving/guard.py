"""uvicorn's HTTP/1.1 protocol with bounds on what a connection may do outside of a request."""

import asyncio
import sys
from collections.abc import Iterable
from typing import ClassVar

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from bluejay.serving.door import Door
from bluejay.serving.errors import ApiError, error_response
from bluejay.serving.limits import ConnectionLimits
from bluejay.serving.places import STATE, Place

_SURPLUS = 64
"""So many connections over the limit are told so; further ones are cut without a word."""


class GuardedProtocol(H11Protocol):
    """One connection. Times are those of the event loop."""

    limits: ClassVar[ConnectionLimits]
    door: ClassVar[Door]
    _waiting_since: float
    _has_part = False
    _had_request = False
    _is_surplus = False
    _held: tuple[Place, bytes] | None = None
    _blocked_since: float | None = None
    _closing_since: float | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvicorn asks for a Transport, and asyncio promises no more than its base.
        super().connection_made(transport)  # type: ignore[arg-type]
        self._waiting_since = self.loop.time()
        if len(self.connections) <= self.limits.connections:
            return
        others = [other for other in self._open_connections() if other is not self]
        if len(others) < self.limits.connections:
            return
        waiting = [other for other in others if other.is_waiting]
        if waiting:
            # Whoever holds connections open without asking anything makes room first.
            min(waiting, key=lambda other: other._waiting_since).transport.close()
        elif len(others) < self.limits.connections + _SURPLUS:
            self.app, self._is_surplus = _refuse_surplus, True
        else:
            self.transport.abort()

    @property
    def is_waiting(self) -> bool:
        """Whether no request is being answered."""
        cycle: RequestResponseCycle | None = self.cycle  # None before the first request
        return self._held is None and (cycle is None or cycle.response_complete)

    def enforce(self, now: float) -> None:
        """Close the connection when it has used up one of its times."""
        limits = self.limits
        if self._blocked_since is not None and now - self._blocked_since > limits.blocked_seconds:
            self.transport.abort()
        elif self.transport.is_closing():
            if self._closing_since is None:
                self._closing_since = now
            elif now - self._closing_since > limits.blocked_seconds:
                self.transport.abort()
        elif self.is_waiting and now - self._waiting_since > self._patience():
            self.transport.close()

    def _patience(self) -> float:
        between_requests = self._had_request and not self._has_part
        return self.limits.idle_seconds if between_requests else self.limits.header_seconds

    def _open_connections(self) -> Iterable["GuardedProtocol"]:
        for other in self.connections:
            if isinstance(other, GuardedProtocol) and not other.transport.is_closing():
                yield other

    def data_received(self, data: bytes) -> None:
        self._begin_held()
        if self._is_between_requests():
            answer = self.door.answer(data, self.server_state.default_headers)
            if isinstance(answer, bytes):
                self._answer_at_once(answer)
                return
            if answer is not None:
                self._let_in(answer, data)
                return
        if self.is_waiting and not self._has_part:
            self._has_part, self._waiting_since = True, self.loop.time()
        super().data_received(data)

    def _is_between_requests(self) -> bool:
        """Whether what comes now is the first of a request, and its answer could go out now."""
        return (
            not self._has_part
            and self.is_waiting
            and not self._is_surplus
            and not self.flow.write_paused
            and not self.transport.is_closing()
            and self.conn.their_state is self.conn.our_state is h11.IDLE
            and self.conn.trailing_data == (b"", False)
        )

    def _answer_at_once(self, answer: bytes) -> None:
        """As if the request had gone the usual way: its body has been read with its head."""
        self._unset_keepalive_if_required()
        self._had_request, self._waiting_since = True, self.loop.time()
        self.server_state.total_requests += 1
        self.transport.write(answer)

    def _let_in(self, place: Place, data: bytes) -> None:
        """The usual way, when it is this request's turn to begin."""
        self._has_part, self._waiting_since = True, self.loop.time()
        self._held = place, data
        self.door.take_turn(self._begin_held)
        if self._held is not None:
            self.flow.pause_reading()

    def _begin_held(self) -> None:
        if self._held is None:
            return
        (place, data), self._held = self._held, None
        self.flow.resume_reading()
        before = self.cycle
        if not self.transport.is_closing():
            self.app_state = {STATE: place}
            super().data_received(data)
            self.app_state = {}
        if self.cycle is before:
            place.free()

    def shutdown(self) -> None:
        self._begin_held()
        super().shutdown()

    def handle_events(self) -> None:
        try:
            super().handle_events()
        except h11.LocalProtocolError:
            # What came is broken, and an answer has begun: it cannot be told.
            self.transport.close()
        if self.flow.read_paused and self._is_ahead():
            # Only who reads notices that the client has left.
            self.flow.resume_reading()

    def _is_ahead(self) -> bool:
        """Whether a little of the next request has come while this one is answered."""
        ahead, _ = self.conn.trailing_data
        return self.conn.their_state is h11.DONE and len(ahead) <= self.limits.header_bytes

    def on_response_complete(self) -> None:
        self._has_part, self._had_request, self._waiting_since = False, True, self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._blocked_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._blocked_since = None

    def send_400_response(self, msg: str) -> None:
        """uvicorn calls this while it handles the parser's exception, whose hint says more."""
        cause = sys.exception()
        status = cause.error_status_hint if isinstance(cause, h11.RemoteProtocolError) else 400
        if status == 431:
            most, flag = self.limits.header_bytes, self.limits.flag("header_bytes")
            error = ApiError(
                431,
                f"The request has more than {most:,} bytes of headers, which is the limit: shorten"
                f" them, or raise it with the server's {flag}.",
                code="limit_exceeded",
            )
        else:
            error = ApiError(400, f"This is not HTTP/1.1 as it should be: {cause}.")
        response = error_response(error)
        headers = [*response.raw_headers, (b"connection", b"close")]
        for event in (
            h11.Response(status_code=error.status, headers=headers),
            h11.Data(data=bytes(response.body)),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()


def guarded(limits: ConnectionLimits, door: Door) -> type[GuardedProtocol]:
    """The protocol with these bounds, and with this door."""
    return type("BoundProtocol", (GuardedProtocol,), {"limits": limits, "door": door})


async def _refuse_surplus(scope: Scope, receive: Receive, send: Send) -> None:
    error = ApiError(
        503,
        "The server has as many connections as it takes: try again soon, or raise the limit with"
        " the server's --max-connections.",
        code="too_many_connections",
        headers={"connection": "close", "retry-after": "1", "x-should-retry": "true"},
    )
    await error_response(error)(scope, receive, send)
