"""Server-sent events, and calls that end when nobody waits for their answer any more."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from bluejay.serving.connection import Connection
from bluejay.serving.errors import (
    NOT_FAILURES,
    ApiError,
    ClientGoneError,
    api_error,
    error_response,
)
from bluejay.serving.logs import log_failure
from bluejay.serving.routes import Call

Result = TypeVar("Result")
DONE = b"data: [DONE]\n\n"
_PING = b": ping\n\n"
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


@dataclass(frozen=True, kw_only=True)
class Event:
    """One frame of a stream: `data` is encoded as JSON; `name` is its `event:` line, if any."""

    data: Any
    name: str | None = None

    def encoded(self) -> bytes:
        """The frame as it is sent. JSON has no line breaks of its own."""
        line = b"data: " + msgspec.json.encode(self.data) + b"\n\n"
        return line if self.name is None else b"event: " + self.name.encode() + b"\n" + line


async def until_disconnect(
    call: Call[Any], work: Coroutine[Any, Any, Result], *, seconds: float | None = None
) -> Result:
    """The result of `work`, which is cancelled as soon as nobody waits for it.

    Raises ClientGoneError when the client has hung up, ApiError 504 at the deadline (the server's,
    or `seconds` after the request's start if that is sooner) and ApiError 503 when the server ends.
    """
    task = asyncio.create_task(work)
    try:
        await _finish_or_interrupt(call, task, _granted(call, seconds))
        return task.result()
    finally:
        await _cancel(task)


async def _finish_or_interrupt(call: Call[Any], task: "asyncio.Task[Any]", seconds: float) -> None:
    """Return when `task` is done; raise what must end it before."""
    end = call.connection.end
    remaining = max(0.0, seconds - call.record.seconds())
    await asyncio.wait((task, end), timeout=remaining, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        return
    if end.done():
        raise end.result()
    raise _too_late(call.connection, seconds)


async def _cancel(task: "asyncio.Task[Any]") -> None:
    """End `task` and wait until it has cleaned up; what it raises then is nobody's any more."""
    task.cancel()
    await asyncio.wait((task,))
    # Looked at, so that asyncio prints nothing about it.
    _ = task.cancelled() or task.exception()


def _granted(call: Call[Any], seconds: float | None) -> float:
    """How long the call may take, from its start."""
    most = call.connection.limits.wait.request_seconds
    return most if seconds is None else min(seconds, most)


def _too_late(connection: Connection, seconds: float) -> ApiError:
    wait = connection.limits.wait
    remedy = f"ask for less, or raise the server's {wait.flag('request_seconds')}"
    headers = {}
    if seconds < wait.request_seconds:
        remedy = "ask for less, or for more time"
        # It was the client's own time: clients that repeat every 504 would only ask thrice.
        headers = {"x-should-retry": "false"}
    return ApiError(
        504,
        f"The request was not finished within {seconds:g} s: {remedy}.",
        code="timeout",
        headers=headers,
    )


def event_stream(
    call: Call[Any],
    events: AsyncGenerator[Event, None],
    *,
    closing: bytes = DONE,
    error_name: str | None = None,
    seconds: float | None = None,
    on_end: Callable[[], None] | None = None,
) -> Response:
    """An answer that sends `events` as they come, then `closing`.

    The answer begins with its first event: until then a failure has a status of its own, and a
    router may still give the request to another server. After that, a failure, the deadline
    (`seconds` as in `until_disconnect`) or the server's end is one last frame `{"error": ...}`,
    named `error_name`, and `closing` is left out: what breaks off never looks complete. While
    nothing comes, comments keep the line open, before the first event when the time in the queue is
    over. When the client has gone, or
    takes nothing for too long, `events` is closed where it waits. `on_end` is called once, however
    the stream ends, also when `events` was never begun.
    """
    ending = _Ending(
        frame=closing,
        error_name=error_name,
        seconds=_granted(call, seconds),
        callback=on_end or (lambda: None),
    )
    return _EventStream(call, events, ending)


@dataclass(frozen=True, kw_only=True)
class _Ending:
    """How a stream ends: its last frame if it is whole, the name of the other one, and when.

    `seconds` are counted from the request's start.
    """

    frame: bytes
    error_name: str | None
    seconds: float
    callback: Callable[[], None]


class _EventStream(Response):
    """One task pulls and sends; the other watches over it, and sends when there is silence."""

    media_type = "text/event-stream"

    def __init__(
        self, call: Call[Any], events: AsyncGenerator[Event, None], ending: _Ending
    ) -> None:
        self._call = call
        self._events = events
        self._ending = ending
        self._last_sent = time.monotonic()
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        opening = _Opening(send, self.raw_headers)
        try:
            await self._send_events(opening)
        except _NotBegunError as error:
            await error_response(error.told)(scope, receive, send)
        finally:
            await self._events.aclose()
            self._ending.callback()

    async def _send_events(self, send: "_Opening") -> None:
        pump = asyncio.create_task(self._pump(send))
        try:
            await self._watch(pump, send)
            pump.result()
        except (ClientGoneError, *NOT_FAILURES):
            raise
        except BaseException as error:
            await _cancel(pump)
            told = self._told(error)
            if not send.has_begun:
                raise _NotBegunError(told) from error
            self._call.record.error = told.code or str(told.status)
            frame = Event(data=told.envelope(), name=self._ending.error_name)
            await send(_part(frame.encoded(), is_last=True))
        else:
            await send(_part(self._ending.frame, is_last=True))
        finally:
            await _cancel(pump)

    async def _pump(self, send: Send) -> None:
        async for event in self._events:
            await send(_part(event.encoded()))
            self._last_sent = time.monotonic()

    async def _watch(self, pump: "asyncio.Task[None]", send: "_Opening") -> None:
        """Return when `pump` is done; raise what must end it before."""
        end, deadline = self._call.connection.end, self._call.record.started + self._ending.seconds
        wait = self._call.connection.limits.wait
        while not pump.done():
            now = time.monotonic()
            if now >= deadline:
                raise _too_late(self._call.connection, self._ending.seconds)
            silence = wait.ping_seconds
            if not send.has_begun:
                silence = max(silence, wait.queue_seconds)
            if now >= self._last_sent + silence:
                await send(_part(_PING))
                self._last_sent = now
            # Looked at again soon: the first event makes the silence shorter.
            due = min(deadline, self._last_sent + silence, now + wait.ping_seconds)
            pause = max(0.0, due - now)
            await asyncio.wait((pump, end), timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            if end.done() and not pump.done():
                raise end.result()

    def _told(self, error: BaseException) -> ApiError:
        told = api_error(error)
        if told.status == 500:
            log_failure(error, request_id=self._call.id)
        return told


class _NotBegunError(Exception):
    """A stream failed before anything of it was sent."""

    def __init__(self, told: ApiError) -> None:
        super().__init__(told.message)
        self.told = told


class _Opening:
    """The way to the client; what is sent first begins the answer."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send, self._headers = send, headers
        self.has_begun = False

    async def __call__(self, message: Message) -> None:
        if not self.has_begun:
            self.has_begun = True
            start = {"type": "http.response.start", "status": 200, "headers": self._headers}
            await self._send(start)
        await self._send(message)


def _part(content: bytes, *, is_last: bool = False) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": not is_last}
