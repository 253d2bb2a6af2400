"""Next words with their probabilities, as a keyboard shows them: words, not tokens."""

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from bluejay.core.errors import UsageError
from bluejay.model.config import DecoderConfig
from bluejay.text.conventions import conventions_of
from bluejay.text.next_tokens import Asking, NextTokens, SeveralAtOnce, answered
from bluejay.text.prompt import fit_context
from bluejay.text.typed_text import TypedText, typed_text
from bluejay.text.word_search import WordSearch
from bluejay.text.words import token_words
from bluejay.vocab.tokenizer import Tokenizer

MAX_CALLS = 32
"""Model calls for one list: below a second where a token takes 25 ms. A path whose cache was
dropped may cost a few more."""

LEAST_PROBABILITY = 0.0005
"""Words below this are left out: what a model offers there is mostly no word at all."""

# Tokens of one path, healed ones included. Longer words exist, but not among the likely ones.
_LONGEST_PATH = 24


@dataclass(frozen=True, kw_only=True)
class Suggestion:
    """A word, its probability, and what to append to the typed text to have it there.

    `completes` tells a completion of the typed word from a word after it.
    """

    word: str
    probability: float
    appended: str
    completes: bool


def suggest(
    model: NextTokens,
    tokenizer: Tokenizer,
    text: str,
    *,
    k: int = 5,
    max_calls: int | None = MAX_CALLS,
    least: float = LEAST_PROBABILITY,
) -> list[Suggestion]:
    """The `k` likeliest words, most probable first; fewer, or none, if `max_calls` does not find so
    many with at least the probability `least`.

    If the text ends within a word, the model itself decides what to offer: next words where the
    typed word more likely ends here than goes on ("How": does, can, …; the probabilities are those
    given that it ends), else completions ("I lo": love, …; given the letters typed). White space or
    punctuation at the end means next words for certain.

    A word's probability is the sum over the token paths that spell it, each times the probability
    that the token after it ends the word. Paths are followed from the most probable, one model
    call each, until none left weighs as much as the k-th word or `least`. What is found is a lower
    bound; the words are disjoint events, so probabilities add up to at most 1. The rest is
    punctuation, the end of the text, the typed word as it is, and what was not followed.

    Words differ in spelling, and in case ("May", "may") because it is part of what would be
    inserted; the two apostrophes and the two ways to write "é" count as one spelling. `max_calls`
    None follows every path of up to 24 tokens, which only tiny vocabularies allow.
    """
    bounds = SearchBounds(k=k, max_calls=max_calls, least=least)
    return answered(suggesting(model, tokenizer, text, bounds), model)


@dataclass(frozen=True, kw_only=True)
class SearchBounds:
    """As `suggest` has them."""

    k: int = 5
    max_calls: int | None = MAX_CALLS
    least: float = LEAST_PROBABILITY


def suggesting(
    model: NextTokens, tokenizer: Tokenizer, text: str, bounds: SearchBounds
) -> Asking[list[Suggestion]]:
    """`suggest` for whoever has the model answer its questions himself."""
    config = model.config
    k, max_calls, least = bounds.k, bounds.max_calls, bounds.least
    if k < 1 or (max_calls is not None and max_calls < 1):
        raise UsageError(f"k and max_calls must be at least 1, not {k} and {max_calls}.")
    longest_path = min(_LONGEST_PATH, config.context_length // 2)
    search = WordSearch(
        token_words(tokenizer),
        _shortened(typed_text(tokenizer, text), tokenizer, config, longest_path),
        allowed=_allowed(tokenizer, config.vocab_size),
        longest_path=longest_path,
        reads_at_once=model.reads_at_once if isinstance(model, SeveralAtOnce) else 1,
    )
    yield from search.run(num_words=k, least=least, max_calls=max_calls)
    return [item for item in _ranked(search)[:k] if item.probability >= least]


@lru_cache(maxsize=4)
def _allowed(tokenizer: Tokenizer, vocab_size: int) -> NDArray[np.bool_]:
    return tokenizer.sampleable_mask(vocab_size)


def _shortened(
    typed: TypedText, tokenizer: Tokenizer, config: DecoderConfig, longest_path: int
) -> TypedText:
    head = fit_context(
        typed.head,
        context_length=config.context_length,
        max_tokens=longest_path,
        policy="trim",
        num_kept=len(conventions_of(tokenizer).document_start),
    )
    return replace(typed, head=tuple(head))


def _ranked(search: WordSearch) -> list[Suggestion]:
    suggestions = []
    masses = [sum(spellings.values()) for spellings in search.found.values()]
    # The sum of all words is a part of the total, but for rounding.
    total = max(search.total, math.fsum(masses))
    for spellings, mass in zip(search.found.values(), masses, strict=True):
        appended = max(spellings, key=lambda text: (spellings[text], text))
        suggestions.append(
            Suggestion(
                word=search.word(appended),
                probability=mass / total,
                appended=appended,
                completes=not search.next_word,
            )
        )
    return sorted(suggestions, key=lambda item: (-item.probability, item.word))
