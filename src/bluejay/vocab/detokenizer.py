"""Turns ids into text while they come, without ever showing half a character."""

import codecs
from collections.abc import Iterable

from bluejay.vocab.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """The text of ids that arrive one by one.

    Everything that `feed` and the last `flush` return adds up to `tokenizer.decode(ids)` exactly.
    Bytes that may still become a character are held back (at most three); bytes that cannot
    become U+FFFD as soon as that is known.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._skipped: frozenset[int] = tokenizer.special_ids if skip_special else frozenset()
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.num_chars = 0

    def feed(self, ids: int | Iterable[int]) -> str:
        """The characters that these ids complete; DataError for an id without a token."""
        arrived = ids if isinstance(ids, Iterable) else (ids,)
        data = [self._tokenizer.token_bytes(i) for i in arrived if i not in self._skipped]
        return self.feed_bytes(b"".join(data))

    def feed_bytes(self, data: bytes) -> str:
        """The characters that these bytes complete."""
        return self._emit(self._decoder.decode(data))

    def flush(self) -> str:
        """What `decode` makes of the bytes held back; feeding may go on with a new text."""
        text = self._emit(self._decoder.decode(b"", final=True))
        self._decoder.reset()
        return text

    @property
    def pending(self) -> bytes:
        """The bytes held back: the beginning of one character."""
        held: bytes = self._decoder.getstate()[0]
        return held

    def _emit(self, text: str) -> str:
        self.num_chars += len(text)
        return text
