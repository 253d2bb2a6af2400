"""What was typed, cut where the model takes over.

The last tokens of a text are rarely those that the finished text would have: "I lo" ends with
` lo`, and "I love" has a token ` love`. So the end of the typed text goes back to bytes, which the
continuation then has to spell first (token healing).
"""

from dataclasses import dataclass

from bluejay.core.errors import UsageError
from bluejay.text.conventions import conventions_of
from bluejay.text.words import State, last_word
from bluejay.vocab.tokenizer import Tokenizer

# Every token that goes back to bytes costs a model call, and only the last word's tokens can
# change. A longer word, or a text without spaces, keeps its first tokens as they are.
_MOST_HEALED = 4


@dataclass(frozen=True, kw_only=True)
class TypedText:
    """`head` are ids that stay; `tail` are the bytes after them that a continuation must spell.

    `word` is the unfinished or just finished word at the end, `state` that of reading it; after
    white space and punctuation there is none.
    """

    head: tuple[int, ...]
    tail: bytes
    word: str
    state: State


def typed_text(tokenizer: Tokenizer, text: str) -> TypedText:
    """Cut at the last token that begins no later than the last word, white space or punctuation.

    UsageError for an empty text where documents have no start.
    """
    start = conventions_of(tokenizer).document_start
    ids = tokenizer.encode(text)
    if not start and not ids:
        raise UsageError(
            "The text is empty and this tokenizer has no token that starts a text: "
            "type at least one character."
        )
    pieces = [tokenizer.token_bytes(token) for token in ids]
    # Not the text itself: a tokenizer may compose characters.
    seen = b"".join(pieces).decode("utf-8", errors="replace")
    word = last_word(seen)
    boundary = len(seen[: _healing_begin(seen, word.begin)].encode())
    first, end = 0, 0
    for number, piece in enumerate(pieces):
        if end <= boundary:
            first = number
        end += len(piece)
    # The model needs at least one token to start from.
    first = max(first, len(ids) - _MOST_HEALED, 0 if start else 1)
    return TypedText(
        head=(*start, *ids[:first]), tail=b"".join(pieces[first:]), word=word.text, state=word.state
    )


def _healing_begin(text: str, word_begin: int) -> int:
    """The first character of the run at the end: a word, white space, or punctuation."""
    if word_begin < len(text) or not text:
        return word_begin
    if text[-1].isspace():
        return len(text.rstrip())
    begin = len(text)
    while begin and not text[begin - 1].isspace() and not last_word(text[begin - 1 : begin]).text:
        begin -= 1
    return begin
