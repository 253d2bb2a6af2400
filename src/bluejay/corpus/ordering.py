"""How hard a text is to read, for corpora that begin with the simplest."""

import re
from typing import Literal

Order = Literal["given", "simplest-first"]
ORDERS: tuple[Order, ...] = ("given", "simplest-first")

_SAMPLES, _SAMPLE_CHARACTERS = 16, 8192
_SENTENCE_END = re.compile(r"[.!?…]+[\"')\]]*(?=\s|$)|\n\n")


def difficulty(text: str) -> float:
    """The automated readability index: about the school year that the text is for.

    4.71 letters a word + 0.5 words a sentence - 21.43 (Smith and Senter, "Automated Readability
    Index", 1967), over 16 samples of 8,192 characters, spread evenly, of a longer text.
    """
    sample = _sample(text)
    words = sample.split()
    if not words:
        return 0.0
    sentences = max(1, sum(1 for _ in _SENTENCE_END.finditer(sample)))
    letters = sum(map(str.isalnum, sample))
    return 4.71 * letters / len(words) + 0.5 * len(words) / sentences - 21.43


def _sample(text: str) -> str:
    if len(text) <= _SAMPLES * _SAMPLE_CHARACTERS:
        return text
    step = (len(text) - _SAMPLE_CHARACTERS) // (_SAMPLES - 1)
    starts = range(0, step * _SAMPLES, step)
    return "\n".join(text[start : start + _SAMPLE_CHARACTERS] for start in starts)
