"""A vocabulary for a corpus: of a part of its training text, and no larger than that gives."""

from collections.abc import Iterable, Iterator

from bluejay.core.errors import DataError
from bluejay.corpus.cleaning import paragraphs
from bluejay.vocab.tokenizer import Tokenizer
from bluejay.vocab.training import train_bpe

SAMPLE_BYTES = 40_000_000
"""Of a larger corpus; twice as much changes the bytes per token by less than 0.1 %."""

_CHUNK_CHARACTERS = 1 << 14
_SMALLEST = 257  # the bytes and the end of a text
_LONGEST_TOKEN = 16  # "——————" and rows of dots are no words


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of `vocab_size` tokens, or of as many as the texts give."""
    try:
        return train_bpe(texts, vocab_size=vocab_size, max_token_length=_LONGEST_TOKEN)
    except DataError:
        pass
    # How many there are is not known before: the largest size that works, by halving.
    enough, too_many = _SMALLEST, vocab_size
    best = train_bpe(texts, vocab_size=enough)
    while too_many - enough > 1:
        middle = (enough + too_many) // 2
        try:
            best = train_bpe(texts, vocab_size=middle, max_token_length=_LONGEST_TOKEN)
            enough = middle
        except DataError:
            too_many = middle
    return best


def spread_sample(texts: Iterable[str], num_bytes: int) -> Iterator[str]:
    """Parts of texts of `num_bytes` in all: everything, or 40 MB spread evenly over them."""
    share = min(1.0, SAMPLE_BYTES / num_bytes) if num_bytes else 1.0
    owed = 0.0
    for chunk in _chunks(texts):
        owed += share
        if owed >= 1:
            owed -= 1
            yield chunk


def _chunks(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        chunk: list[str] = []
        size = 0
        for paragraph in paragraphs(text):
            chunk.append(paragraph)
            size += len(paragraph)
            if size >= _CHUNK_CHARACTERS:
                yield "\n\n".join(chunk)
                chunk, size = [], 0
        if chunk:
            yield "\n\n".join(chunk)
