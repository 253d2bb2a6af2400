"""Stages of a sampler chain that look at the text of tokens."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import lru_cache
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from bluejay.generation.candidates import Candidates, top_k
from bluejay.generation.sampler_chain import RepeatedSequences
from bluejay.vocab.tokenizer import Tokenizer

_INFILL_LEAST = 0.2
# Of more candidates the others are all below 1 / 64, and merging takes their number squared.
_MOST_MERGED = 64


def repeated_sequences(
    tokenizer: Tokenizer,
    *,
    multiplier: float,
    base: float,
    allowed_length: int,
    last_n: int,
    breakers: Sequence[str],
) -> RepeatedSequences:
    """DRY whose sequences do not reach over any token that has one of the `breakers` in it."""
    return RepeatedSequences(
        multiplier=multiplier,
        base=base,
        allowed_length=allowed_length,
        last_n=last_n,
        breakers=_breaking_tokens(tokenizer, tuple(breakers)),
    )


# A search of the whole vocabulary, for each sample: clients send the same ones with every request.
@lru_cache(maxsize=64)
def _breaking_tokens(tokenizer: Tokenizer, breakers: tuple[str, ...]) -> frozenset[int]:
    wanted = [text.encode() for text in breakers if text]
    return frozenset(
        token
        for token, data in enumerate(tokenizer.token_bytes_table())
        if data is not None and any(text in data for text in wanted)
    )


class BannedStrings:
    """Keeps texts from being written: a token that would complete one is left out.

    Upper and lower case of the letters A to Z count as the same. The text before is not taken
    back; what the model writes in place of the end of a banned text is up to it. The prompt's text
    counts as begun. Where nothing else may come, the ban does not hold.
    """

    def __init__(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        self._vocabulary = _lower_case(tokenizer)
        self._texts = [text.encode().lower() for text in texts if text]
        self._complete = [_containing(self._vocabulary, text) for text in self._texts]
        self._longest = max((len(text) for text in self._texts), default=0)
        self._end = b""

    def begin(self, prompt: Sequence[int]) -> None:
        # A token has at least one byte, or none that counts.
        for token in prompt[max(0, len(prompt) - 2 * self._longest) :]:
            self.chosen(token)

    def chosen(self, token: int) -> None:
        data = self._vocabulary.data(token)
        self._end = (self._end + data)[-self._longest :] if self._longest else b""

    def sample(self, candidates: Candidates) -> Candidates:
        banned: set[int] = set()
        for text, complete in zip(self._texts, self._complete, strict=True):
            banned |= complete
            for length in range(1, len(text)):
                if self._end.endswith(text[:length]):
                    banned |= self._vocabulary.beginning_with(text[length:])
        if not banned:
            return candidates
        kept = ~np.isin(candidates.ids, np.fromiter(banned, np.int64))
        return candidates.keep(kept) if kept.any() else candidates


class Infill:
    """The end of a sampler chain for text between other text, as llama.cpp's of that name.

    The text ends where the tokens that end it are together, times three times the number of
    candidates, more probable than all others. Else each candidate that begins another one shares
    its probability: the more probable of the two gets both. Then what is below 0.2, and below an
    even share of the rest, is left out; where nothing is left, the text ends.
    """

    def __init__(self, tokenizer: Tokenizer, stop_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._stop_ids = np.fromiter(stop_ids, np.int64)

    def begin(self, prompt: Sequence[int]) -> None:
        pass

    def chosen(self, token: int) -> None:
        pass

    def sample(self, candidates: Candidates) -> Candidates:
        shares = candidates.probabilities
        ends = np.isin(candidates.ids, self._stop_ids)
        ending = float(shares[ends].sum())
        if ends.any() and 3 * ending * ends.size > 1 - ending:
            return candidates.keep(ends)
        most = np.argsort(-shares, kind="stable")[:_MOST_MERGED]
        texts, texts_shares = (
            candidates.keep(most),
            self._merged(candidates.ids[most], shares[most]),
        )
        texts_shares[np.isin(texts.ids, self._stop_ids)] = 0
        kept = texts_shares >= _INFILL_LEAST
        if not kept.any():
            return candidates.keep(ends) if ends.any() else top_k(candidates, 1)
        left = texts_shares[kept] / texts_shares[kept].sum()
        even = left >= min(1 / (left.size + 1), float(left.max()))
        return Candidates(ids=texts.ids[kept][even], scores=np.log(left[even]))

    def _merged(self, ids: NDArray[np.int64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """The shares after the merging; what was given away is 0."""
        texts = [self._tokenizer.token_bytes(int(token)) for token in ids]
        merged = shares.copy()
        for short, long in permutations(range(len(texts)), 2):
            both = merged[short] > 0 and merged[long] > 0
            if both and texts[short] and texts[long].startswith(texts[short]):
                gets, gives = (long, short) if merged[long] > merged[short] else (short, long)
                merged[gets] += merged[gives]
                merged[gives] = 0
        return merged


class _LowerCase:
    """All tokens' bytes in lower case, to be looked up by their beginning."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        special = tokenizer.special_ids
        self._data = [
            b"" if data is None or token in special else data.lower()
            for token, data in enumerate(tokenizer.token_bytes_table())
        ]
        self._order = sorted(range(len(self._data)), key=self._data.__getitem__)
        self._sorted = [self._data[token] for token in self._order]

    def data(self, token: int) -> bytes:
        return self._data[token] if token < len(self._data) else b""

    def containing(self, text: bytes) -> frozenset[int]:
        return frozenset(token for token, data in enumerate(self._data) if text in data)

    def beginning_with(self, text: bytes) -> set[int]:
        first = bisect_left(self._sorted, text)
        last = bisect_right(self._sorted, text + b"\xff" * 64)
        return set(self._order[first:last])


@lru_cache(maxsize=1024)
def _containing(vocabulary: _LowerCase, text: bytes) -> frozenset[int]:
    return vocabulary.containing(text)


@lru_cache(maxsize=4)
def _lower_case(tokenizer: Tokenizer) -> _LowerCase:
    return _LowerCase(tokenizer)
