"""Requests with real lengths, and requests that are wrong on purpose. The same seed, the same ones.

Lengths are pairs of real tasks, in tokens of GPT-2's tokenizer: 16 records of each set, drawn with
seed 0 by `random.Random(0).sample`, in this order.

- GSM8K test (openai/grade-school-math @ 3101c7d50724, MIT): question, worked answer
- HumanEval (openai/human-eval @ 6d43fb980f9f, MIT): prompt, canonical solution
- XQuAD, en (google-deepmind/xquad @ 7d30520c7175, CC-BY-SA-4.0): context and question, answer
- descriptions of Standard Ebooks (CC0-1.0): one-sentence summary, long description

The text is prose of Python's own documentation (`pydoc_data.topics`), which every machine has, from
a new place for each request, so that no two prompts begin alike unless that is asked for.
"""

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from pydoc_data.topics import topics
from typing import Any

from serve_http import Call

LENGTHS = {
    "gsm8k": (
        *((48, 72), (59, 127), (26, 42), (68, 146), (73, 144), (41, 59), (71, 132), (52, 58)),
        *((80, 167), (40, 55), (53, 61), (40, 53), (55, 87), (24, 50), (82, 94), (28, 85)),
    ),
    "humaneval": (
        *((63, 43), (149, 26), (160, 85), (168, 65), (160, 108), (136, 113), (169, 20)),
        *((148, 142), (115, 74), (190, 23), (276, 44), (218, 183), (143, 34), (185, 178)),
        *((148, 103), (133, 228)),
    ),
    "xquad": (
        *((226, 1), (135, 2), (174, 8), (269, 3), (134, 4), (144, 3), (211, 2), (217, 1), (108, 3)),
        *((131, 4), (127, 5), (253, 1), (128, 6), (492, 13), (191, 3), (168, 3)),
    ),
    "descriptions": (
        *((21, 264), (14, 196), (27, 99), (24, 308), (15, 212), (14, 90), (12, 38), (22, 215)),
        *((31, 358), (25, 314), (33, 121), (25, 220), (14, 276), (31, 129), (22, 130), (14, 105)),
    ),
}
CHARACTERS_PER_TOKEN = 5  # of this prose with GPT-2's tokenizer; the report has the server's count

# Each must be refused with a status of 4xx, whatever else the server does.
BAD_BODIES = (
    b"",
    b"null",
    b"[]",
    b"{",
    b"\xff\xfe{\x00}\x00",
    b'{"prompt": "a", "max_tokens": NaN}',
    b'{"prompt": "\\ud800", "max_tokens": 1}',
    b'{"prompt": "a", "max_tokens": "5"}',
    b'{"prompt": "a", "max_tokens": -1}',
    b'{"prompt": "a", "max_tokens": 1.5}',
    b'{"prompt": "a", "temperature": -1}',
    b'{"prompt": "a", "top_p": 1.01}',
    b'{"prompt": "a", "n": 9223372036854775808}',
    b'{"prompt": [-1], "max_tokens": 1}',
    b'{"prompt": "a", "no_such_field": 1}',
    b"[" * 2000,
    b'{"prompt": "' + b"a" * 200_000 + b'", "max_tokens": 1}',
)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What is asked for. `prompt_tokens` and `max_tokens` replace the lengths of the tasks,
    `shared_tokens` begin every prompt, `extra` goes into every body."""

    model: str = ""
    seed: int = 0
    streams: bool = True
    is_chat: bool = False
    temperature: float = 0.8
    prompt_tokens: int | None = None
    max_tokens: int | None = None
    longest: int = 1024  # tokens of prompt and output together; three quarters of it for a prompt
    shared_tokens: int = 0
    extra: Mapping[str, Any] = field(default_factory=dict)

    def calls(self) -> Iterator[Call]:
        """Requests without end, the n-th the same in every run."""
        draw = random.Random(self.seed)
        pairs = [pair for task in LENGTHS.values() for pair in task]
        beginning = text_from(0, self.shared_tokens) if self.shared_tokens else ""
        for number in count():
            prompt_tokens, output_tokens = draw.choice(pairs)
            prompt_tokens = min(self.prompt_tokens or prompt_tokens, self.longest * 3 // 4)
            output_tokens = min(self.max_tokens or output_tokens, self.longest - prompt_tokens)
            start = draw.randrange(len(_WORDS))
            prompt = beginning + text_from(start, prompt_tokens)
            yield self.call(prompt, max_tokens=output_tokens, seed=number)

    def call(self, prompt: str, *, max_tokens: int, seed: int, **more: Any) -> Call:
        """One request of this kind."""
        document: dict[str, Any] = {"model": self.model} if self.model else {}
        if self.is_chat:
            document["messages"] = [{"role": "user", "content": prompt}]
        else:
            document["prompt"] = prompt
        document |= {"max_tokens": max_tokens, "temperature": self.temperature, "seed": seed}
        if self.streams:
            document |= {"stream": True, "stream_options": {"include_usage": True}}
        path = "/v1/chat/completions" if self.is_chat else "/v1/completions"
        return Call(path=path, document=document | dict(self.extra) | more)


def text_from(start: int, num_tokens: int) -> str:
    """About that many tokens of text, from a word of the documentation on."""
    wanted, length = num_tokens * CHARACTERS_PER_TOKEN, 0
    pieces: list[str] = []
    for offset in count():
        word = _WORDS[(start + offset) % len(_WORDS)]
        length += len(word) + 1
        if length > wanted and pieces:
            return " ".join(pieces)
        pieces.append(word)
    raise AssertionError


def bad_calls(*, seed: int) -> Iterator[Call]:
    """Requests without end that must be refused."""
    draw = random.Random(seed)
    while True:
        yield Call(path="/v1/completions", raw=draw.choice(BAD_BODIES))


# Words of prose, whose number of tokens hardly depends on the tokenizer: no tables and no grammars.
_WORDS = re.findall(
    r"(?<!\S)[A-Za-z][a-z'-]{0,19}[.,;:?!]?(?!\S)",
    " ".join(topics[name] for name in sorted(topics)),
)
