"""The plainest of requests, told from their bytes alone: whole, and with nothing to be asked about.

Programs that write a request write it like this. Whatever is not certainly so is None here, and
then the parser of HTTP says what it is.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from bluejay.serving.access import Headers

_PATH = re.compile(r"[A-Za-z0-9/._-]+")
_NAME = rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_VALUE = rb"[!-~](?:[ -~]*[!-~])?"
_FIELDS = re.compile(rb"(?:%s: %s\r\n)+" % (_NAME, _VALUE))
_EACH_FIELD = re.compile(rb"(%s): (%s)\r\n" % (_NAME, _VALUE))
_LENGTH = re.compile(rb"[0-9]{1,7}")
# They change how the request ends, or what becomes of the connection.
_NOT_PLAIN = frozenset({b"expect", b"trailer", b"transfer-encoding", b"upgrade"})


@dataclass(frozen=True)
class PlainRequest:
    """A POST with its whole body. Names of headers are in lower case."""

    path: str
    headers: Headers
    head_bytes: int


class PlainRequests:
    """Those to certain paths."""

    def __init__(self, paths: Iterable[str]) -> None:
        self._paths = {
            f"POST {path} HTTP/1.1".encode("ascii"): path for path in paths if _PATH.fullmatch(path)
        }

    def read(self, data: bytes) -> PlainRequest | None:
        """The one request that `data` is, from its first byte to its last; else None."""
        line_end = data.find(b"\r\n", 0, 128)
        path = self._paths.get(data[:line_end])
        end = data.find(b"\r\n\r\n") + 2
        if path is None or _FIELDS.fullmatch(data, line_end + 2, end) is None:
            return None
        fields = _EACH_FIELD.findall(data, line_end + 2, end)
        headers = [(name.lower(), value) for name, value in fields]
        values = dict(headers)
        length = values.get(b"content-length", b"")
        if (
            len(values) != len(headers)  # a header that comes twice
            or b"host" not in values
            or not _NOT_PLAIN.isdisjoint(values)
            or values.get(b"connection", b"keep-alive").lower() != b"keep-alive"
            or _LENGTH.fullmatch(length) is None
            or end + 2 + int(length) != len(data)
        ):
            return None
        return PlainRequest(path, headers, end + 2)
