"""Bodies: counted and timed as they come in, then read as strict JSON of one type."""

import asyncio
import difflib
import json
import re
from collections.abc import AsyncIterator, Mapping
from functools import lru_cache
from typing import Any, NoReturn

import msgspec
from starlette.types import Receive

from bluejay.serving.access import Headers
from bluejay.serving.errors import ApiError, ClientGoneError
from bluejay.serving.limits import ConnectionLimits

_NAME_CHARACTERS = 64
SKIPPED_BYTES = 8 << 20
"""So much of a body that is refused is still taken, so that its sender hears why."""

_JSON_TYPE = re.compile(r'application/json(?:\s*;\s*charset="?utf-?8"?)?\s*', re.IGNORECASE)
_MANY_DIGITS = re.compile(r"[0-9]{19}")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*?)`(?: - at `(.*)`)?", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*?)`(?: - at `(.*)`)?", re.DOTALL)
_STEP = re.compile(r"\.([^.\[\]]+)|\[[^\]]*\]")


class BodyReader:
    """The body of one request."""

    def __init__(self, receive: Receive, headers: Headers, limits: ConnectionLimits) -> None:
        self._receive = receive
        self._headers = dict(headers)
        self._limits = limits
        self._deadline = asyncio.get_running_loop().time() + limits.body_seconds
        length = self._headers.get(b"content-length", b"")
        self._length = int(length) if length.isdigit() and len(length) < 19 else None
        self.is_complete = b"transfer-encoding" not in self._headers and not self._length

    async def read(self) -> bytes:
        """All of it. ApiError 408, 413 or 415; ClientGoneError."""
        if self.is_complete:
            return b""
        self._check_headers()
        self._limits.check("body_bytes", self._length or 0, status=413)
        chunks, num_bytes = [], 0
        try:
            async with asyncio.timeout_at(self._deadline):
                async for chunk in self._chunks():
                    chunks.append(chunk)
                    num_bytes += len(chunk)
                    self._limits.check("body_bytes", num_bytes, status=413)
        except TimeoutError:
            seconds, flag = self._limits.body_seconds, self._limits.flag("body_seconds")
            raise ApiError(
                408,
                f"The body did not arrive within {seconds:g} s: send it at once, or raise the"
                f" limit with the server's {flag}.",
                code="body_timeout",
            ) from None
        return b"".join(chunks)

    async def skip(self) -> bool:
        """Take the rest without keeping it; whether all of it came, within bounds."""
        if b"expect" in self._headers or (self._length or 0) > SKIPPED_BYTES:
            return self.is_complete
        num_bytes = 0
        try:
            async with asyncio.timeout_at(self._deadline):
                async for chunk in self._chunks():
                    num_bytes += len(chunk)
                    if num_bytes > SKIPPED_BYTES:
                        break
        except TimeoutError:
            pass
        return self.is_complete

    async def _chunks(self) -> AsyncIterator[bytes]:
        while not self.is_complete:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            self.is_complete = not message.get("more_body", False)
            yield bytes(message.get("body", b""))

    def _check_headers(self) -> None:
        encoding = self._headers.get(b"content-encoding", b"identity").decode("latin-1")
        if encoding.strip().lower() != "identity":
            raise ApiError(
                415, f"The body is encoded as {encoding[:50]!r}: send it uncompressed as it is."
            )
        kind = self._headers.get(b"content-type", b"").decode("latin-1").strip()
        if not _JSON_TYPE.fullmatch(kind):
            raise ApiError(
                415, f"The content type is {kind[:100]!r}: send JSON, as 'application/json'."
            )


def decode_body(
    body: bytes, kind: type[msgspec.Struct], refused: Mapping[str, str] | None = None
) -> Any:
    """`body` as a value of `kind`. ApiError 400 with a sentence that names the place.

    `refused` holds fields that are known but not offered, with the reason.
    """
    text = _utf8(body)
    _check_syntax(text)
    try:
        return _decoder(kind).decode(text)
    except msgspec.ValidationError as error:
        _refuse(str(error), kind, refused or {})
    except msgspec.DecodeError:
        # Everything else that is malformed was found before.
        raise ApiError(400, "The body has half a surrogate pair, which is no character.") from None


def _utf8(body: bytes) -> str:
    if not body.strip():
        raise ApiError(400, "The body is empty: send a JSON object.")
    if body[:3] == b"\xef\xbb\xbf" or body[:2] in (b"\xff\xfe", b"\xfe\xff") or b"\0" in body[:4]:
        raise ApiError(400, "The body must be JSON in UTF-8 without a byte order mark.")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError as error:
        message = f"The body is not UTF-8: byte {error.start} does not fit."
        raise ApiError(400, message) from None


def _check_syntax(text: str) -> None:
    """Refuse what is not JSON, and what JSON readers understand differently."""
    # Whole numbers are looked at one by one only where one may be too large: ids come by thousands.
    whole = _bounded_int if _MANY_DIGITS.search(text) else None
    try:
        json.loads(
            text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_int=whole
        )
    except json.JSONDecodeError as error:
        raise ApiError(
            400,
            f"The body is not JSON: {error.msg.lower()} at line {error.lineno}, column"
            f" {error.colno}.",
        ) from None
    except RecursionError:
        raise ApiError(400, "The body is nested too deeply.") from None


def _bounded_int(digits: str) -> None:
    if len(digits) > 20 or not -(2**63) <= int(digits) < 2**63:
        shown = digits if len(digits) <= 20 else digits[:20] + "..."
        raise ApiError(400, f"The body has the whole number {shown}, which is out of range.")


def _unique(pairs: list[tuple[str, Any]]) -> None:
    """Only the keys matter: of two equal ones, who knows which is meant."""
    seen = set()
    for key, _ in pairs:
        if key in seen:
            raise ApiError(400, f"The body has the key {_shown(key)} twice.", param=_plain(key))
        seen.add(key)


def _refuse_constant(name: str) -> NoReturn:
    raise ApiError(400, f"The body has {name}, which is no number in JSON.")


@lru_cache
def _decoder(kind: type[msgspec.Struct]) -> "msgspec.json.Decoder[Any]":
    return msgspec.json.Decoder(kind)


def _refuse(message: str, kind: type[msgspec.Struct], refused: Mapping[str, str]) -> NoReturn:
    if unknown := _UNKNOWN.fullmatch(message):
        name, path = _plain(unknown[1]), unknown[2] or "$"
        param = f"{path}.{name}".removeprefix("$.")
        if path == "$" and name in refused:
            text = f"The field {_shown(name)} is not supported: {refused[name]}"
            raise ApiError(400, text, param=name, code="unsupported_field")
        near = difflib.get_close_matches(name, _field_names(kind, path), n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        text = f"There is no field {_shown(param)}{hint}"
        raise ApiError(400, text, param=param, code="unknown_field")
    if missing := _MISSING.fullmatch(message):
        param = f"{missing[2] or '$'}.{missing[1]}".removeprefix("$.")
        raise ApiError(400, f"The field '{param}' is missing.", param=param, code="missing_field")
    what, _, path = message.replace("`", "'").partition(" - at ")
    what = what[:1].lower() + (what[1:] if len(what) <= 200 else what[1:200] + "…")
    param = path.removeprefix("key in ").strip("'").removeprefix("$").removeprefix(".")
    if not param:
        raise ApiError(400, f"The body is wrong: {what}.")
    raise ApiError(400, f"The field '{param}' is wrong: {what}.", param=param)


def _field_names(kind: type[msgspec.Struct], path: str) -> list[str]:
    """The fields of the objects that may stand at `path` in a `kind`."""
    found: list[msgspec.inspect.Type] = [msgspec.inspect.type_info(kind)]
    for step in _STEP.finditer(path.removeprefix("$")):
        found = [inner for outer in found for inner in _inside(outer, step[1])]
    return [
        member.encode_name
        for outer in found
        for struct in _alternatives(outer)
        if isinstance(struct, msgspec.inspect.StructType)
        for member in struct.fields
    ]


def _inside(outer: msgspec.inspect.Type, name: str | None) -> list[msgspec.inspect.Type]:
    """The types of what stands under the field `name` of `outer`, or in it where None."""
    inner: list[msgspec.inspect.Type] = []
    for kind in _alternatives(outer):
        if isinstance(kind, msgspec.inspect.StructType):
            inner += [member.type for member in kind.fields if member.encode_name == name]
        elif isinstance(kind, msgspec.inspect.CollectionType) and name is None:
            inner.append(kind.item_type)
        elif isinstance(kind, msgspec.inspect.DictType) and name is None:
            inner.append(kind.value_type)
    return inner


def _alternatives(kind: msgspec.inspect.Type) -> tuple[msgspec.inspect.Type, ...]:
    return kind.types if isinstance(kind, msgspec.inspect.UnionType) else (kind,)


def _plain(name: str) -> str:
    """A name from outside, of bounded length and fit for any encoding."""
    short = name if len(name) <= _NAME_CHARACTERS else name[:_NAME_CHARACTERS] + "..."
    return short.encode("utf-8", "backslashreplace").decode("utf-8")


def _shown(name: str) -> str:
    """The same in quotes and on one line."""
    return repr(_plain(name))
