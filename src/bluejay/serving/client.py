"""A client of servers that speak OpenAI's API, Bluejay's among them. Standard library only."""

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from bluejay.core.errors import BluejayError, UsageError

DONE: Final = "[DONE]"
_LONGEST_LINE = 1 << 24
_LONGEST_ERROR = 1 << 16
_LONGEST_JSON = 1 << 26


class ServerError(BluejayError):
    """The server cannot be reached, is busy, or failed: the same request may succeed later."""


@dataclass(frozen=True, kw_only=True)
class RemoteToken:
    """A token as the server shows it, its log probability in nats, and the likeliest others."""

    text: str
    logprob: float | None
    alternatives: tuple[tuple[str, float], ...] = ()
    id: None = None  # servers do not tell


@dataclass(frozen=True, kw_only=True)
class RemoteCompletion:
    """One finished sample. `num_tokens` are those of all samples of the request, with the sample
    that finished last, and 0 with the others: servers count them together."""

    text: str
    finish_reason: str
    num_tokens: int = 0
    tokens: tuple[RemoteToken, ...] = ()
    ids: None = None
    num_drafted: int = 0
    num_accepted: int = 0


@dataclass(frozen=True, kw_only=True)
class RemoteDelta:
    """New text of one sample; `completion` comes with its last one."""

    sample_index: int
    text: str
    completion: RemoteCompletion | None = None


class RemoteServer:
    """A server at `url`, with or without /v1 at its end.

    `seconds` is how long nothing may come before the server counts as gone. All methods raise
    UsageError for what the server refuses and ServerError for what it could not do.
    """

    def __init__(self, url: str, *, api_key: str | None = None, seconds: float = 600.0) -> None:
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = 0
        if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
            raise UsageError(f"{url!r} is no address of a server: give one as http://HOST:PORT.")
        self.url = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/').removesuffix('/v1')}"
        self._host, self._port, self._is_tls = parts.hostname, port, parts.scheme == "https"
        self._prefix = parts.path.rstrip("/").removesuffix("/v1")
        self._headers = {"Content-Type": "application/json", "Accept": "*/*"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._seconds = seconds

    def models(self) -> list[str]:
        """Names of the models that the server has."""
        document = self._json("GET", "/v1/models", None)
        return [str(entry["id"]) for entry in _list_of(document, "data") if "id" in entry]

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """The JSON object that answers."""
        return self._json("POST", path, body)

    def events(self, path: str, body: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """The objects of a stream, up to its end. Who stops reading should close the iterator: the
        server then stops writing."""
        with self._exchange("POST", path, body) as response:
            for data in _event_data(response):
                if data == DONE:
                    return
                document = _object(data, self.url)
                if "error" in document:
                    raise ServerError(f"{self.url} broke off: {_message(document)}")
                yield document
        raise ServerError(f"{self.url} broke off in the middle of its answer.")

    def _json(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        with self._exchange(method, path, body) as response:
            return _object(response.read(_LONGEST_JSON).decode("utf-8", "replace"), self.url)

    @contextmanager
    def _exchange(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> Iterator[http.client.HTTPResponse]:
        """The response of status 200, whose connection is closed behind the block."""
        connection = self._connection()
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        try:
            connection.request(method, self._prefix + path, content, self._headers)
            response = connection.getresponse()
            if response.status != 200:
                raise self._refusal(response)
            yield response
        except ConnectionRefusedError:
            raise ServerError(
                f"Nothing answers at {self.url}: start a server there (`bluejay serve`), or check"
                " the address."
            ) from None
        except TimeoutError:
            raise ServerError(f"{self.url} said nothing for {self._seconds:g} s.") from None
        except (OSError, http.client.HTTPException) as error:
            reason = str(error) or type(error).__name__
            raise ServerError(f"The connection to {self.url} broke: {reason}.") from None
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if not self._is_tls:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._seconds)
        return http.client.HTTPSConnection(
            self._host, self._port, timeout=self._seconds, context=ssl.create_default_context()
        )

    def _refusal(self, response: http.client.HTTPResponse) -> BluejayError:
        text = response.read(_LONGEST_ERROR).decode("utf-8", "replace")
        try:
            message = _message(json.loads(text))
        except ValueError:
            message = text.strip()[:200] or response.reason
        status = response.status
        if status == 401:
            return UsageError(f"{self.url} wants an API key (--api-key-env names it): {message}")
        if status == 429 or status >= 500:
            wait = response.getheader("retry-after")
            hint = f" Try again in {wait} s." if wait and wait.isdigit() else ""
            return ServerError(f"{self.url} cannot do it now ({status}): {message}{hint}")
        return UsageError(f"{self.url} refuses ({status}): {message}")


class RemoteModel:
    """A model on a server, which completes and chats as a local one does."""

    def __init__(self, server: RemoteServer, model: str) -> None:
        self.server, self.model = server, model

    def deltas(
        self, prompt: str, *, n: int = 1, logprobs: int | None = None, **options: Any
    ) -> Iterator[RemoteDelta]:
        """New text of `n` samples as it comes. `options` are fields of `/v1/completions`."""
        body = {"model": self.model, "prompt": prompt, "n": n, **_given(options)}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        if logprobs is not None:
            body["logprobs"] = logprobs
        samples = [_Sample(num_alternatives=logprobs or 0) for _ in range(n)]
        num_tokens, num_open = 0, n
        last: RemoteDelta | None = None
        for document in self.server.events("/v1/completions", body):
            num_tokens = (document.get("usage") or {}).get("completion_tokens", num_tokens)
            for choice in _list_of(document, "choices"):
                index = choice.get("index", 0)
                if index not in range(n):
                    raise ServerError(f"{self.server.url} sent a sample that was not asked for.")
                delta = samples[index].take(choice, index)
                num_open -= delta.completion is not None
                if num_open == 0 and delta.completion is not None:
                    last = delta  # how many tokens there were is said behind it
                elif delta.text or delta.completion is not None:
                    yield delta
        if last is None:
            raise ServerError(f"{self.server.url} finished only {n - num_open} of {n} samples.")
        yield samples[last.sample_index].with_count(last, num_tokens)

    def chat(self, messages: Sequence[Mapping[str, str]], **options: Any) -> Iterator[str]:
        """The pieces of the next answer of a conversation."""
        body = {"model": self.model, "messages": list(messages), "stream": True, **_given(options)}
        for document in self.server.events("/v1/chat/completions", body):
            for choice in _list_of(document, "choices"):
                text = (choice.get("delta") or {}).get("content")
                if text:
                    yield text


class _Sample:
    """What has come of one sample."""

    def __init__(self, *, num_alternatives: int) -> None:
        self._num_alternatives = num_alternatives
        self._texts: list[str] = []
        self._tokens: list[RemoteToken] = []
        self._num_chunks = 0

    def take(self, choice: Mapping[str, Any], index: int) -> RemoteDelta:
        text = choice.get("text") or ""
        self._texts.append(text)
        self._num_chunks += bool(text)
        self._tokens += _tokens(choice.get("logprobs") or {}, self._num_alternatives)
        reason = choice.get("finish_reason")
        done = None
        if reason:
            done = RemoteCompletion(
                text="".join(self._texts), finish_reason=str(reason), tokens=tuple(self._tokens)
            )
        return RemoteDelta(sample_index=index, text=text, completion=done)

    def with_count(self, delta: RemoteDelta, num_tokens: int) -> RemoteDelta:
        """The last delta, with the number of tokens; of chunks, where the server tells none."""
        done = delta.completion
        assert done is not None
        counted = RemoteCompletion(
            text=done.text,
            finish_reason=done.finish_reason,
            tokens=done.tokens,
            num_tokens=num_tokens or self._num_chunks,
        )
        return RemoteDelta(sample_index=delta.sample_index, text=delta.text, completion=counted)


def _tokens(logprobs: Mapping[str, Any], num_alternatives: int) -> list[RemoteToken]:
    texts = logprobs.get("tokens") or []
    scores = logprobs.get("token_logprobs") or [None] * len(texts)
    tops = logprobs.get("top_logprobs") or [None] * len(texts)
    return [
        RemoteToken(
            text=text,
            logprob=score,
            alternatives=tuple(
                sorted((top or {}).items(), key=lambda pair: -pair[1])[:num_alternatives]
            ),
        )
        for text, score, top in zip(texts, scores, tops, strict=False)
    ]


def _event_data(response: http.client.HTTPResponse) -> Iterator[str]:
    """The data of each server-sent event; comments and other fields are left out."""
    lines: list[str] = []
    while raw := response.readline(_LONGEST_LINE):
        line = raw.decode("utf-8", "replace").rstrip("\r\n")
        if line.startswith("data:"):
            lines.append(line[5:].removeprefix(" "))
        elif not line and lines:
            yield "\n".join(lines)
            lines.clear()


def _object(text: str, url: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ServerError(f"{url} answers with something else than JSON: is it a model's server?")
    return found


def _list_of(document: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = document.get(name)
    return [item for item in found if isinstance(item, dict)] if isinstance(found, list) else []


def _message(document: Any) -> str:
    """The sentence of an error in one of the shapes that servers give it."""
    error = document.get("error") if isinstance(document, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return str(error or document)[:1000]


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is empty or None, which a server may not know as absent."""
    return {name: value for name, value in options.items() if value not in (None, [], {}, ())}
