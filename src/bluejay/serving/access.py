"""Who may speak to the server: keys, names of the host, origins of web pages."""

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from bluejay.core.errors import UsageError
from bluejay.serving.errors import ApiError

KEY_VARIABLE = "BLUEJAY_API_KEY"
Headers = Sequence[tuple[bytes, bytes]]

_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[0-9]{1,5})?", re.ASCII)
_ORIGIN = re.compile(r"https?://([^/?#@]+)", re.ASCII)
_HEADER_LIST = re.compile(r"[A-Za-z0-9_, -]{1,1000}", re.ASCII)
_KEY_REMEDY = (
    f"give one in {KEY_VARIABLE} or with --api-key-file, and send it as 'Authorization: Bearer KEY'"
)


@dataclass(frozen=True, kw_only=True)
class Access:
    """Which keys, host names and origins are let in. Keys are kept as their SHA-256 only.

    `keys_sha256` empty: no key is needed, which only a loopback address may offer. `hosts` are
    names besides those of loopback. `origins` are those of web pages from elsewhere, "https://...";
    none by default. `any_address`: a host given as an IP address is let in too; a foreign page
    cannot make a browser send one of those under its own name.
    """

    keys_sha256: tuple[bytes, ...] = field(default=(), repr=False)
    hosts: frozenset[str] = frozenset()
    origins: frozenset[str] = frozenset()
    any_address: bool = False

    def tenant(self, headers: Headers) -> str:
        """A name for whoever holds the key in `headers`, "" without keys. ApiError 401."""
        if not self.keys_sha256:
            return ""
        given = hashlib.sha256(_given_key(headers)).digest()
        # All are compared, so that the time tells nothing.
        matches = [hmac.compare_digest(given, known) for known in self.keys_sha256]
        if not any(matches):
            raise _unauthorized(f"The API key is wrong: {_KEY_REMEDY}.")
        return given.hex()[:32]

    def check_host(self, headers: Headers) -> str:
        """The Host header in lower case. Else a page elsewhere could name this machine its own."""
        values = [value for name, value in headers if name == b"host"]
        if len(values) != 1:
            raise ApiError(400, f"A request needs one Host header, not {len(values)}.")
        host = values[0].decode("latin-1").lower()
        match = _HOST.fullmatch(host)
        if match is None:
            raise ApiError(400, f"The Host header {host[:100]!r} is no name or address.")
        if not self._is_known_host(match[1].strip("[]")):
            raise ApiError(
                403,
                f"This server does not go by the name {match[1]!r}: start it with"
                f" --allowed-host {match[1]} if it should.",
                code="host_not_allowed",
            )
        return host

    def _is_known_host(self, name: str) -> bool:
        if is_loopback(name) or name in self.hosts:
            return True
        return self.any_address and _address(name) is not None

    def check_origin(self, headers: Headers, *, host: str) -> str | None:
        """The foreign origin that is let in, None for none or the server's own; else ApiError."""
        values = [value.decode("latin-1").lower() for name, value in headers if name == b"origin"]
        if not values:
            return None
        origin = values[0]
        if len(values) == 1 and origin in self.origins:
            return origin
        match = _ORIGIN.fullmatch(origin)
        if len(values) == 1 and match is not None and match[1] == host:
            return None
        raise ApiError(
            403,
            f"Pages of {origin[:100]!r} may not use this server: start it with --cors-origin"
            " and their origin if they should.",
            code="origin_not_allowed",
        )


def _given_key(headers: Headers) -> bytes:
    """The one key in `headers`: `Authorization: Bearer`, or `x-api-key`."""
    given = [
        (name, value.strip())
        for name, value in headers
        if name in (b"authorization", b"x-api-key") and value.strip()
    ]
    if not given:
        raise _unauthorized(f"This server needs an API key: {_KEY_REMEDY}.")
    if len(given) > 1:
        raise _unauthorized("Send the API key in one header, not in several.")
    name, value = given[0]
    if name == b"x-api-key":
        return value
    scheme, _, key = value.partition(b" ")
    if scheme.lower() != b"bearer":
        raise _unauthorized("The Authorization header must be 'Bearer' with the API key.")
    return key.strip()


def _unauthorized(message: str) -> ApiError:
    headers = {"www-authenticate": "Bearer"}
    return ApiError(401, message, code="invalid_api_key", headers=headers)


def preflight_headers(headers: Headers, *, origin: str) -> dict[str, str]:
    """What a browser wants to hear before a page of `origin`, which is let in, may ask."""
    wanted = dict(headers).get(b"access-control-request-headers", b"").decode("latin-1")
    answer = {
        "access-control-allow-methods": "GET, POST",
        "access-control-allow-headers": (
            wanted if _HEADER_LIST.fullmatch(wanted) else "authorization, content-type, x-api-key"
        ),
        "access-control-max-age": "600",
    }
    if (b"access-control-request-private-network", b"true") in headers:
        answer["access-control-allow-private-network"] = "true"
    return answer | cors_headers(origin)


def cors_headers(origin: str) -> dict[str, str]:
    """What lets a page of `origin` read the answer."""
    return {
        "access-control-allow-origin": origin,
        "access-control-expose-headers": "retry-after, x-request-id, x-should-retry",
        "vary": "origin",
    }


def make_access(
    host: str,
    *,
    keys: Iterable[str] = (),
    allowed_hosts: Iterable[str] = (),
    origins: Iterable[str] = (),
) -> Access:
    """Access to a server that binds `host`. UsageError for a reachable one without a key."""
    digests = tuple(hashlib.sha256(_checked_key(key)).digest() for key in keys)
    if not is_loopback(host) and not digests:
        raise UsageError(
            f"Binding {host!r} lets others on the network in, and no API key is set:"
            f" {_KEY_REMEDY}, or bind 127.0.0.1."
        )
    names = {name.lower().strip("[]") for name in allowed_hosts}
    if bad := sorted(name for name in names if not re.fullmatch(r"[a-z0-9._:-]+", name)):
        raise UsageError(f"--allowed-host {bad[0]!r} is no name of a host: give it without a port.")
    pages = {origin.lower().rstrip("/") for origin in origins}
    if bad := sorted(page for page in pages if not re.fullmatch(r"[a-z+.-]+://[^/?#@*]+", page)):
        raise UsageError(f"--cors-origin {bad[0]!r} is no origin, like 'https://example.org'.")
    return Access(
        keys_sha256=digests,
        hosts=frozenset(names | {host.lower().strip("[]")}),
        origins=frozenset(pages),
        any_address=not is_loopback(host),
    )


def read_keys(environment: Mapping[str, str], key_file: Path | None = None) -> tuple[str, ...]:
    """Keys from BLUEJAY_API_KEY and from a file with one a line; each is a tenant of its own."""
    keys = [environment[KEY_VARIABLE]] if environment.get(KEY_VARIABLE) else []
    if key_file is not None:
        try:
            lines = key_file.read_text(encoding="ascii").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--api-key-file {str(key_file)!r} cannot be read: {error}.") from None
        found = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not found:
            raise UsageError(f"--api-key-file {str(key_file)!r} has no key: write one a line.")
        keys += found
    for key in keys:
        _checked_key(key)
    return tuple(dict.fromkeys(keys))


def _checked_key(key: str) -> bytes:
    """The bytes of a key that fits into a header. The sentence does not quote it."""
    if not key or not all("!" <= character <= "~" for character in key):
        raise UsageError("An API key must be visible ASCII characters without spaces.")
    return key.encode("ascii")


@lru_cache(maxsize=64)
def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`."""
    name = host.lower().strip("[]")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = _address(name)
    return address is not None and address.is_loopback


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
