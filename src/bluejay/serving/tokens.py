"""`/tokenize` and `/detokenize`: text to ids and back, in the shapes of llama.cpp and of vLLM, and
`/tokenizer_info`, by which lm-evaluation-harness knows that it needs no tokenizer of its own."""

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Annotated

import msgspec
from msgspec import Meta
from starlette.responses import Response

from bluejay.core.errors import BluejayError
from bluejay.serving.errors import ApiError
from bluejay.serving.routes import Call, Route, StrictBody, json_answer
from bluejay.serving.service import TextService

# Below, a thread costs more than the work.
_SHORT = 4096


class TokenizeBody(StrictBody, frozen=True, kw_only=True):
    """A text under one of its three usual names. null is as if absent."""

    content: Annotated[str, Meta(description="The text, as llama.cpp calls it.")] | None = None
    prompt: (
        Annotated[
            str,
            Meta(
                description="The text, as vLLM calls it, and as there: names of special tokens are"
                " those tokens unless parse_special is false."
            ),
        ]
        | None
    ) = None
    input: Annotated[str, Meta(description="The text.")] | None = None
    add_special: (
        Annotated[bool, Meta(description="Ids as a prompt has them, behind the document start.")]
        | None
    ) = None
    add_special_tokens: Annotated[bool, Meta(description="The same.")] | None = None
    parse_special: (
        Annotated[
            bool,
            Meta(
                description="Names of special tokens are those tokens; if absent, only in prompt."
            ),
        ]
        | None
    ) = None
    with_pieces: Annotated[bool, Meta(description="Each id with what it stands for.")] | None = None
    model: str | None = None


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """An id, its text (its bytes where they are no text), and the characters of the whole text
    that it has bytes of: from `start` up to `end`."""

    id: int
    piece: str | list[int]
    start: int
    end: int


class TokenizeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """The ids, or pieces where they were asked for."""

    tokens: list[int | Piece]
    count: int
    max_model_len: int


class DetokenizeBody(StrictBody, frozen=True, kw_only=True):
    """Ids in order."""

    tokens: list[int]
    model: str | None = None


class DetokenizeAnswer(msgspec.Struct, frozen=True, kw_only=True):
    """Their text, as llama.cpp and as vLLM call it; bytes that are none become U+FFFD."""

    content: str
    prompt: str


class TokenizerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The names of the tokens with a job, null where there is none. `bos_token` is the one that the
    server puts before texts. There is no chat template: those of this server are no Jinja."""

    bos_token: str | None
    eos_token: str | None
    pad_token: str | None
    unk_token: str | None
    model_max_length: int


def token_routes(service: TextService) -> list[Route]:
    """The routes that turn text into ids and back."""
    return [
        Route(
            method="POST",
            path="/tokenize",
            summary="A text as ids.",
            handler=partial(_tokenize, service),
            body=TokenizeBody,
            answer=TokenizeAnswer,
            needs_engine=False,
        ),
        Route(
            method="POST",
            path="/detokenize",
            summary="Ids as text.",
            handler=partial(_detokenize, service),
            body=DetokenizeBody,
            answer=DetokenizeAnswer,
            needs_engine=False,
        ),
        Route(
            method="GET",
            path="/tokenizer_info",
            summary="The names of special tokens.",
            handler=partial(_info, service),
            answer=TokenizerInfo,
            needs_engine=False,
        ),
    ]


async def _tokenize(service: TextService, call: Call[TokenizeBody]) -> Response:
    body = call.body
    service.adapter_of(body.model)
    name, text = _text(body)
    service.limits.request.check("prompt_characters", len(text), param=name)
    work = partial(_answer, service, body, text)
    try:
        return json_answer(work() if len(text) < _SHORT else await asyncio.to_thread(work))
    except BluejayError as error:
        raise ApiError(400, str(error), param=name) from None


async def _detokenize(service: TextService, call: Call[DetokenizeBody]) -> Response:
    body = call.body
    service.adapter_of(body.model)
    work = partial(service.tokenizer.decode, body.tokens)
    try:
        text = work() if len(body.tokens) < _SHORT else await asyncio.to_thread(work)
    except BluejayError as error:
        raise ApiError(400, str(error), param="tokens") from None
    return json_answer(DetokenizeAnswer(content=text, prompt=text))


async def _info(service: TextService, call: Call[None]) -> Response:
    tokenizer = service.tokenizer
    roles = {
        "bos_token": tokenizer.document_start_id,
        "eos_token": tokenizer.eos_id,
        "pad_token": tokenizer.pad_id,
        "unk_token": tokenizer.unk_id,
    }
    names = {role: None if i is None else tokenizer.token_name(i) for role, i in roles.items()}
    return json_answer(TokenizerInfo(**names, model_max_length=service.context_length))


def _text(body: TokenizeBody) -> tuple[str, str]:
    """The name of the field that has the text, and the text."""
    given = [
        (name, value)
        for name in ("content", "prompt", "input")
        if isinstance(value := getattr(body, name), str)
    ]
    if len(given) != 1:
        names = " and ".join(name for name, _ in given) or "none of them"
        raise ApiError(
            400,
            f"The text comes in one of content, prompt and input, but there is {names}: send one.",
            param=given[1][0] if given else "content",
            code=None if given else "missing_field",
        )
    return given[0]


def _answer(service: TextService, body: TokenizeBody, text: str) -> TokenizeAnswer:
    reads_names = body.prompt is not None if body.parse_special is None else body.parse_special
    ids = service.tokenizer.encode(text, allow_special=reads_names)
    begins = bool(body.add_special or body.add_special_tokens)
    start = list(service.conventions.document_start) if begins else []
    tokens: list[int | Piece] = [*start, *ids]
    if body.with_pieces:
        tokens = [*(_piece(service, token, 0, 0) for token in start), *_pieces(service, ids)]
    return TokenizeAnswer(tokens=tokens, count=len(tokens), max_model_len=service.context_length)


def _pieces(service: TextService, ids: Sequence[int]) -> list[Piece]:
    """Every id with the characters that it has bytes of, counted in the text of the ids.

    That is the text itself, unless a tokenizer composes characters.
    """
    data = [service.tokenizer.token_bytes(token) for token in ids]
    whole = b"".join(data).decode("utf-8", errors="replace")
    # The character that each byte belongs to.
    places = [place for place, char in enumerate(whole) for _ in char.encode()]
    found, first = [], 0
    for token, piece in zip(ids, data, strict=True):
        last = first + len(piece)
        start = places[first] if first < len(places) else len(whole)
        found.append(_piece(service, token, start, places[last - 1] + 1 if piece else start))
        first = last
    return found


def _piece(service: TextService, token: int, start: int, end: int) -> Piece:
    data = service.tokenizer.token_bytes(token)
    try:
        return Piece(id=token, piece=data.decode("utf-8"), start=start, end=end)
    except UnicodeDecodeError:
        return Piece(id=token, piece=list(data), start=start, end=end)
