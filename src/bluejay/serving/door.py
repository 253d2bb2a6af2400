"""Who comes to a full queue is told so at the door, before anything is made of his request.

Hundreds may come in one moment, and one event loop hears them all. The usual way of a request costs
it a millisecond, whatever the answer is, so here a plain one is refused from its bytes alone, by
the same checks and in the same words.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import msgspec

from bluejay.generation.engine_requests import QueueFullError
from bluejay.serving.access import Access, Headers, cors_headers
from bluejay.serving.errors import ApiError, api_error
from bluejay.serving.exchange import ALWAYS
from bluejay.serving.limits import Limits
from bluejay.serving.logs import log_request
from bluejay.serving.metrics import Metrics
from bluejay.serving.places import Place, Places
from bluejay.serving.plain_requests import PlainRequest, PlainRequests
from bluejay.serving.record import RequestRecord
from bluejay.serving.routes import Route

_AT_ONCE = 2
_NOTED_AT_ONCE = 32
_METHOD = "POST"
_STATUS = 429
_ALWAYS = b"".join(f"{name}: {value}\r\n".encode() for name, value in ALWAYS.items())


class House(Protocol):
    """What the door needs of the application behind it."""

    access: Access
    limits: Limits
    metrics: Metrics

    def was_ready(self) -> bool: ...

    def require_place(self, num_ahead: int = 0) -> None: ...

    def return_seconds(self) -> int: ...


class Door:
    """Refuses plain requests to the queued ones of `routes`, or keeps a place for them.

    A place is kept for those that are whole only, so that nobody keeps one by sending slowly. One
    event loop only.
    """

    def __init__(self, house: House, routes: Iterable[Route]) -> None:
        self._house = house
        self._plain = PlainRequests(
            route.path for route in routes if route.is_queued and route.method == _METHOD
        )
        self._places = Places()
        self._unnoted: deque[tuple[str, RequestRecord]] = deque()
        self._begun = 0
        self._line: deque[Callable[[], None]] = deque()

    def answer(self, data: bytes, usual: Headers) -> bytes | Place | None:
        """What becomes of a request that is all of `data`, on a connection where nothing else is
        on its way: its refusal, with the headers `usual` in front, or the place that is kept for
        it. None for what must go the usual way to be understood, or to be told what is wrong.
        """
        request = self._plain.read(data)
        if request is None:
            return None
        record = RequestRecord(id=secrets.token_hex(16))
        try:
            marks = self._checked(request, record.id)
        except ApiError:
            return None
        if marks is None:
            return None
        try:
            self._house.require_place(self._places.num_kept)
        except QueueFullError as error:
            told = api_error(error)
            told.headers["retry-after"] = str(self._house.return_seconds())
            record.end()
            self._note_later(request, record)
            return _written(told, marks, usual)
        return self._places.keep()

    def _checked(self, request: PlainRequest, request_id: str) -> dict[str, str] | None:
        """What the answer is marked with, None where no work is taken. ApiError for the rest.

        The order is that of `Exchange`.
        """
        house, headers = self._house, request.headers
        limits = house.limits.connection
        # With the request line, these are more bytes than the limit counts.
        if len(headers) > limits.header_count or request.head_bytes > limits.header_bytes:
            return None
        host = house.access.check_host(headers)
        origin = house.access.check_origin(headers, host=host)
        house.access.tenant(headers)
        if not house.was_ready():
            return None
        marks = {"x-request-id": request_id}
        return marks if origin is None else marks | cors_headers(origin)

    def _note_later(self, request: PlainRequest, record: RequestRecord) -> None:
        """The lines of the log are written when those who came together have their answers."""
        if not self._unnoted:
            asyncio.get_running_loop().call_soon(self._note_some)
        self._unnoted.append((request.path, record))

    def _note_some(self) -> None:
        for _ in range(min(len(self._unnoted), _NOTED_AT_ONCE)):
            path, record = self._unnoted.popleft()
            log_request(record, method=_METHOD, path=path, status=_STATUS)
            self._house.metrics.request(method=_METHOD, path=path, status=_STATUS, seconds=None)
        if self._unnoted:
            asyncio.get_running_loop().call_soon(self._note_some)

    def take_turn(self, begin: Callable[[], None]) -> None:
        """Call `begin`, now or soon: few begin in the same turn of the event loop, since each of
        them holds it up for a millisecond, and who is refused meanwhile is not to wait for all."""
        if not self._begun:
            asyncio.get_running_loop().call_soon(self._next_turn)
        if self._begun < _AT_ONCE:
            self._begun += 1
            begin()
        else:
            self._line.append(begin)

    def _next_turn(self) -> None:
        num = self._begun = min(len(self._line), _AT_ONCE)
        if num:
            asyncio.get_running_loop().call_soon(self._next_turn)
        for _ in range(num):
            self._line.popleft()()


def _written(error: ApiError, marks: Mapping[str, str], usual: Headers) -> bytes:
    """The answer to the byte as `Exchange`, Starlette and the parser of HTTP write it."""
    body = msgspec.json.encode(error.envelope())
    first = b"".join(b"%s: %s\r\n" % header for header in usual)
    own = {"content-length": str(len(body)), "content-type": "application/json"}
    return b"".join(
        (
            b"HTTP/1.1 429 Too Many Requests\r\n",
            first,
            _lines(error.headers | own),
            _ALWAYS,
            _lines(marks),
            b"\r\n",
            body,
        )
    )


def _lines(headers: Mapping[str, str]) -> bytes:
    return "".join(f"{name}: {value}\r\n" for name, value in headers.items()).encode("latin-1")
