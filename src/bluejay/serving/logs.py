"""The server's log: one line per request, and never a word of a prompt, an answer or a key."""

import json
import logging
import time
import traceback
from typing import Protocol

from bluejay.serving.record import RequestRecord

_LOGGER = logging.getLogger("bluejay.serving")
_ENGINES_LOGGER = logging.getLogger("bluejay.generation")
_FIELDS = "bluejay_fields"
_PATH_CHARACTERS = 100


def log_request(
    record: RequestRecord, *, method: str, path: str, status: int, is_probe: bool = False
) -> None:
    """The line of a request that has ended. `path` is without its query, which may hold a key.

    A probe that succeeds comes every few seconds and says nothing: its line is for debugging only.
    """
    fields: dict[str, str | int | float] = {
        "method": _one_line(method),
        "path": _one_line(path),
        "status": status,
        "ms": round(record.seconds() * 1000, 1),
        "prompt_tokens": record.prompt_tokens,
        "cached_tokens": record.cached_tokens,
        "new_tokens": record.new_tokens,
        "request": record.id,
    }
    if record.error is not None:
        fields["error"] = record.error
    level = logging.DEBUG if is_probe and status == 200 else logging.INFO
    _LOGGER.log(level, "%s", _text(fields), extra={_FIELDS: fields})


def log_failure(error: BaseException, *, request_id: str) -> None:
    """One line about an unexpected exception: its kind and place, but no message and no trace.

    A message may quote what the client sent.
    """
    fields = {"request": request_id, "failure": type(error).__name__, "place": _place(error)}
    text = f"{request_id} failed: {fields['failure']} at {fields['place']}"
    _LOGGER.error("%s", text, extra={_FIELDS: fields})


def log_trouble(sentence: str) -> None:
    """A line about the server itself, which somebody has to look after."""
    _LOGGER.error("%s", sentence)


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"


class Stream(Protocol):
    """Where lines go: `sys.stderr`."""

    def write(self, text: str, /) -> object: ...


def set_up_logs(stream: Stream, *, as_json: bool) -> None:
    """Write the server's log and its engine's to `stream`: plain lines, or one JSON object a line.

    Of an exception it has the kind and the place, as `log_failure`.
    """
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_JsonLines() if as_json else _PlainLines())
    for logger in (_LOGGER, _ENGINES_LOGGER):
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False


class _PlainLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        failure = "".join(f" {value}" for value in _failure(record).values())
        return f"{at} {record.getMessage()}{failure}"


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        head = {"time": f"{at}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        fields = getattr(record, _FIELDS, None) or {"message": record.getMessage()}
        return json.dumps(head | fields | _failure(record))


def _failure(record: logging.LogRecord) -> dict[str, str]:
    """What was raised and where, without its message, which may quote what a client sent."""
    error = record.exc_info[1] if record.exc_info else None
    if error is None:
        return {}
    return {"failure": type(error).__name__, "place": _place(error)}


def _text(fields: dict[str, str | int | float]) -> str:
    line = f"{fields['method']} {fields['path']} {fields['status']} {fields['ms']:.0f} ms"
    if fields["prompt_tokens"] or fields["new_tokens"]:
        line += f" {fields['prompt_tokens']}+{fields['new_tokens']} tokens"
    if fields["cached_tokens"]:
        line += f" ({fields['cached_tokens']} cached)"
    line += f" {fields['request']}"
    return line + (f" error={fields['error']}" if "error" in fields else "")


def _one_line(path: str) -> str:
    """A path from outside cannot forge another line."""
    shown = path.encode("ascii", "backslashreplace").decode("ascii")
    shown = "".join(c if "!" <= c <= "~" else f"\\x{ord(c):02x}" for c in shown)
    return shown if len(shown) <= _PATH_CHARACTERS else shown[:_PATH_CHARACTERS] + "..."
