"""From a text to the ids that a model reads, within its context."""

from collections.abc import Sequence
from typing import Literal, get_args

from bluejay.core.errors import UsageError
from bluejay.text.conventions import conventions_of
from bluejay.vocab.tokenizer import Tokenizer

ContextPolicy = Literal["refuse", "trim"]


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of `text` behind the family's document start; special names in it are plain text.

    UsageError if that leaves no id at all: an empty text where documents have no start.
    """
    ids = [*conventions_of(tokenizer).document_start, *tokenizer.encode(text)]
    if not ids:
        raise UsageError(
            "The prompt is empty and this tokenizer has no token that starts a text: "
            "give the prompt at least one character."
        )
    return ids


def fit_context(
    ids: Sequence[int],
    *,
    context_length: int,
    max_tokens: int,
    policy: ContextPolicy = "refuse",
    num_kept: int = 0,
) -> list[int]:
    """The prompt, such that `max_tokens` more ids fit into the context.

    "trim" drops the oldest ids behind the first `num_kept` (the document start, say). "refuse"
    raises UsageError with the numbers; both do if not even one id behind the kept ones would be
    left.
    """
    if policy not in get_args(ContextPolicy):
        raise UsageError(f"The context policy must be refuse or trim, not {policy!r}.")
    room = context_length - max_tokens
    if len(ids) <= room:
        return list(ids)
    if room <= num_kept:
        raise UsageError(
            f"{max_tokens} new tokens leave no room for a prompt in a context of {context_length} "
            f"tokens: set max_tokens to {max(1, context_length - len(ids))} or lower."
        )
    if policy == "refuse":
        raise UsageError(
            f"A prompt of {len(ids)} tokens and {max_tokens} new ones exceed the context of "
            f"{context_length} tokens by {len(ids) - room}: shorten the prompt, lower max_tokens, "
            "or let the oldest tokens be trimmed."
        )
    return [*ids[:num_kept], *ids[len(ids) - (room - num_kept) :]]
