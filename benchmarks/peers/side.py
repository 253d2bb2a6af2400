"""What every side of a comparison is asked, and how it answers: one JSON object a line.

A side is a script, run in a process of its own by decode_peers.py:

    SCRIPT MODEL --what rates --batch 1,4 --prompt 128 --context 0,1900 --tokens 64 --threads 2
    SCRIPT MODEL --what start --began 1700000000.0 --threads 2

Its answers, told apart by `what` (all have `engine` and `version`):

    {"what": "decode", "batch": 4, "context": 0, "tokens_per_s": 210.0}   summed over rows
    {"what": "prefill", "prompt": 128, "tokens_per_s": 400.0}             logits of the last token
    {"what": "load", "seconds": 0.3}           from the call that opens the files until it returns
    {"what": "first_token", "seconds": 0.9}    from `--began`, when the process was started

Context 0 is measured with every batch, deeper contexts with the first batch alone: filling 16 rows
with 1900 tokens takes minutes. A first token follows a prompt of 16 tokens. The standard output is
for these lines; a side that cannot run says why in one line there, {"what": "skip", "why": ...}.
Standard library alone: every engine's own Python runs it.
"""

import argparse
import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

FIRST_PROMPT = 16


@dataclass(frozen=True)
class Request:
    """The parsed command line."""

    model: str
    what: str
    variant: str
    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    contexts: tuple[int, ...]
    tokens: int
    threads: int
    began: float

    @property
    def decode_cases(self) -> list[tuple[int, int]]:
        """(batch, context) pairs."""
        shallow = [(batch, 0) for batch in self.batches if 0 in self.contexts]
        return shallow + [(self.batches[0], context) for context in self.contexts if context]


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(",") if part)


def request(about: str) -> Request:
    parser = argparse.ArgumentParser(description=about.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--what", choices=("rates", "start"), default="rates")
    parser.add_argument("--variant", default="", help="an engine's own choice, such as a dtype")
    parser.add_argument("--batch", type=_numbers, default=(1, 4, 8, 16))
    parser.add_argument("--prompt", type=_numbers, default=(128, 512, 2048))
    parser.add_argument("--context", type=_numbers, default=(0, 1900))
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--began", type=float, default=time.time())
    given = parser.parse_args()
    return Request(
        given.model,
        given.what,
        given.variant,
        given.batch,
        given.prompt,
        given.context,
        given.tokens,
        given.threads,
        given.began,
    )


class Answers:
    """Prints the readings of one engine."""

    def __init__(self, engine: str, version: str) -> None:
        self._about = {"engine": engine, "version": version}

    def say(self, what: str, **values: float | str) -> None:
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
        print(json.dumps({**self._about, "what": what, **rounded}), flush=True)

    def first_token(self, began: float) -> None:
        self.say("first_token", seconds=time.time() - began)


def skip(engine: str, why: object) -> None:
    """Say in one line why this side does not run, and end."""
    line = " ".join(str(why).split())[:300]
    print(json.dumps({"engine": engine, "what": "skip", "why": line}), flush=True)
    sys.exit(0)


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@contextlib.contextmanager
def output_to_stderr() -> Iterator[None]:
    """Libraries that print go elsewhere: the lines are a protocol."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def random_ids(rows: int, length: int, vocabulary: int) -> list[list[int]]:
    """The same ids for every engine, none of them special."""
    state, found = 12345, []
    for _ in range(rows):
        row = []
        for _ in range(length):
            state = (1103515245 * state + 12345) % 2**31
            row.append(1000 + (state >> 8) % (vocabulary - 2000))
        found.append(row)
    return found
