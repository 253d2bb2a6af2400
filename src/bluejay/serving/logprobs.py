"""Log probabilities of tokens in the two shapes that OpenAI gave them."""

import math
from collections.abc import Sequence

import msgspec

from bluejay.generation.engine_requests import TokenScore
from bluejay.text.sample_writer import WrittenToken
from bluejay.vocab.tokenizer import Tokenizer

_IMPOSSIBLE = -9999.0
"""What OpenAI's API says for a probability of zero: JSON has no infinity."""


class CompletionLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Of the tokens of a choice, in order: texts, log probabilities, the likeliest alternatives
    with the token itself, and the character of the choice's text that each begins at.

    The first token of an echoed prompt has none: null.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TopLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """An alternative; `bytes` are those of a token that may be a part of a character."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(msgspec.Struct, frozen=True, kw_only=True):
    """A token of an answer with the likeliest alternatives there."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True, kw_only=True):
    """Of the tokens of an answer, in order."""

    content: list[ChatTokenLogprob]
    refusal: None = None


def shown_token(tokenizer: Tokenizer, token: int) -> str:
    r"""A token's text; bytes that are no text as OpenAI showed them: `bytes:\xe2\x82`."""
    data = tokenizer.token_bytes(token)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(_shown_byte(byte) for byte in data)


def completion_logprobs(tokenizer: Tokenizer, tokens: Sequence[WrittenToken]) -> CompletionLogprobs:
    """In the shape of `/v1/completions`."""
    return CompletionLogprobs(
        tokens=[shown_token(tokenizer, token.score.id) for token in tokens],
        token_logprobs=[
            None if token.score.logprob is None else _finite(token.score.logprob)
            for token in tokens
        ],
        top_logprobs=[_top(tokenizer, token.score) for token in tokens],
        text_offset=[token.offset for token in tokens],
    )


def chat_logprobs(tokenizer: Tokenizer, tokens: Sequence[WrittenToken]) -> ChatLogprobs:
    """In the shape of `/v1/chat/completions`."""
    return ChatLogprobs(
        content=[
            ChatTokenLogprob(
                token=shown_token(tokenizer, token.score.id),
                logprob=_finite(token.score.logprob),
                bytes=list(tokenizer.token_bytes(token.score.id)),
                top_logprobs=[
                    TopLogprob(
                        token=shown_token(tokenizer, other),
                        logprob=_finite(value),
                        bytes=list(tokenizer.token_bytes(other)),
                    )
                    for other, value in token.score.alternatives
                ],
            )
            for token in tokens
        ]
    )


def _top(tokenizer: Tokenizer, score: TokenScore) -> dict[str, float] | None:
    if score.logprob is None:
        return None
    found: dict[str, float] = {}
    # The likelier of two tokens that look the same stays.
    for token, value in score.alternatives:
        found.setdefault(shown_token(tokenizer, token), _finite(value))
    found.setdefault(shown_token(tokenizer, score.id), _finite(score.logprob))
    return found


def _finite(logprob: float | None) -> float:
    return logprob if logprob is not None and math.isfinite(logprob) else _IMPOSSIBLE


def _shown_byte(byte: int) -> str:
    if byte == ord("\\"):
        return "\\\\"
    return chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}"
