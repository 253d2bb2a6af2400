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
        self._skip_special = skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self.num_chars = 0

    def feed(self, ids: int | Iterable[int]) -> str:
        """The characters that these ids complete; DataError for an id without a token."""
        arrived = ids if isinstance(ids, Iterable) else (ids,)
        data = self._tokenizer.decode_bytes(arrived, skip_special=self._skip_special)
        return self.feed_bytes(data)

    def feed_bytes(self, data: bytes) -> str:
        """The characters that these bytes complete."""
        text = self._decoder.decode(data)
        self.num_chars += len(text)
        return text

    def flush(self) -> str:
        """What `decode` makes of the bytes held back; feeding may go on with a new text."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self.num_chars += len(text)
        return text

    @property
    def pending(self) -> bytes:
        """The bytes held back: the beginning of one character."""
        held: bytes = self._decoder.getstate()[0]
        return held
