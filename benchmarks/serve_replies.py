"""From bytes with times to what a client saw: tokens, gaps, text, what went wrong."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from serve_http import Reply

DONE = "[DONE]"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One request as its client saw it, times of `time.perf_counter`.

    `kind` is ok, or what went wrong: refused, reset, timeout, cancelled, `http 429` and the like,
    `error frame`, `no [DONE]`, `bad json`. `arrivals` are the times of the chunks that brought
    text. Tokens are those of `usage`, or the number of chunks where there is none.
    """

    kind: str
    path: str
    streams: bool
    sent: float
    first_byte: float
    ended: float
    arrivals: tuple[float, ...] = ()
    prompt_tokens: int = 0
    output_tokens: int = 0
    text: str = ""
    finish_reason: str = ""
    logprobs: tuple[Any, ...] = ()

    @property
    def is_ok(self) -> bool:
        return self.kind == "ok"

    @property
    def seconds(self) -> float:
        return self.ended - self.sent

    @property
    def first_token_seconds(self) -> float | None:
        """From sending to the first text; None where nothing was streamed."""
        return self.arrivals[0] - self.sent if self.arrivals else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between chunks of text."""
        return [b - a for a, b in zip(self.arrivals, self.arrivals[1:], strict=False)]

    @property
    def scored_tokens(self) -> int | None:
        """Tokens that came with log probabilities, which tell how many are in a chunk."""
        if not self.logprobs:
            return None
        return sum(len(part.get("tokens") or part.get("content") or ()) for part in self.logprobs)

    def tokens_between(self, began: float, ended: float) -> float:
        """Of the output, what arrived in that time; evenly over the request if not streamed."""
        if self.arrivals:
            num = sum(began <= arrival <= ended for arrival in self.arrivals)
            return self.output_tokens * num / len(self.arrivals)
        overlap = min(self.ended, ended) - max(self.sent, began)
        return self.output_tokens * max(0.0, overlap) / max(self.seconds, 1e-9)


def read_reply(reply: Reply) -> Outcome:
    """What the client saw."""
    call = reply.call
    about: dict[str, Any] = {
        "path": call.path,
        "streams": call.streams,
        "sent": reply.sent,
        "first_byte": reply.first_byte,
        "ended": reply.ended,
    }
    if reply.failure and not call.streams:
        return Outcome(kind=reply.failure, **about)
    if reply.status != 200 and reply.status:
        return Outcome(kind=f"http {reply.status}", **about)
    if call.streams:
        return _read_stream(reply, about)
    document = reply.document()
    if not isinstance(document, dict):
        return Outcome(kind="bad json", **about)
    return Outcome(kind="ok", **about, **_choice_fields([document]))


def events(pieces: list[tuple[float, bytes]]) -> Iterator[tuple[float, str]]:
    """The data of each server-sent event, with the time of the piece that completed it."""
    buffer = b""
    for arrived, data in pieces:
        buffer = (buffer + data).replace(b"\r\n", b"\n")
        *blocks, buffer = buffer.split(b"\n\n")
        for block in blocks:
            lines = [line[5:].lstrip() for line in block.split(b"\n") if line.startswith(b"data:")]
            if lines:
                yield arrived, b"\n".join(lines).decode("utf-8", "replace")


def _read_stream(reply: Reply, about: dict[str, Any]) -> Outcome:
    documents: list[dict[str, Any]] = []
    arrivals: list[float] = []
    kind = reply.failure or f"no {DONE}"
    for arrived, data in events(reply.pieces):
        if data == DONE:
            kind = "ok"
            break
        try:
            document = json.loads(data)
        except ValueError:
            kind = "bad json"
            break
        if "error" in document:
            kind = "error frame"
            break
        documents.append(document)
        if _has_text(document):
            arrivals.append(arrived)
    fields = _choice_fields(documents)
    fields["output_tokens"] = fields["output_tokens"] or len(arrivals)
    return Outcome(kind=kind, **about, arrivals=tuple(arrivals), **fields)


def _choice_fields(documents: list[dict[str, Any]]) -> dict[str, Any]:
    texts, finish, logprobs = [], "", []
    prompt_tokens = output_tokens = 0
    for document in documents:
        usage = document.get("usage") or {}
        prompt_tokens = usage.get("prompt_tokens", prompt_tokens)
        output_tokens = usage.get("completion_tokens", output_tokens)
        for choice in document.get("choices", ()):
            texts.append(_text(choice))
            finish = choice.get("finish_reason") or finish
            if choice.get("logprobs"):
                logprobs.append(choice["logprobs"])
    return {
        "text": "".join(texts),
        "finish_reason": finish,
        "logprobs": tuple(logprobs),
        "prompt_tokens": prompt_tokens,
        "output_tokens": output_tokens,
    }


def _has_text(document: dict[str, Any]) -> bool:
    return any(_text(choice) for choice in document.get("choices", ()))


def _text(choice: dict[str, Any]) -> str:
    for part in ("delta", "message"):
        if part in choice:
            return choice[part].get("content") or ""
    return choice.get("text") or ""
