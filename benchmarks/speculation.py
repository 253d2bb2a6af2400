"""What speculation gains on texts that copy, and what it costs on texts that do not.

    python benchmarks/speculation.py [MODEL] [--rounds 5] [--tokens 200] [--draft MODEL]

Two processes hold the model, one speculates and one does not; they take turns, prompt by prompt,
the other way round in every second round. Programs are loaded before: what is measured are tokens
per second of a process that runs, prefill left out. Both must write the same ids. Looping text is
the share of written tokens inside an 8-gram that occurs at least three times in what was written.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import date
from statistics import median
from typing import IO, Any

FUNCTION = '''def count_words(text, minimum=1):
    """Count how often each word of a text occurs, and drop rare ones."""
    counts = {}
    for word in text.lower().split():
        word = word.strip(".,;:!?")
        if word:
            counts[word] = counts.get(word, 0) + 1
    return {word: number for word, number in counts.items() if number >= minimum}
'''
RENAMED = FUNCTION.replace("counts", "totals")
OTHER = '''def longest_line(path, encoding="utf-8"):
    """The longest line of a file, without the end of the line."""
    longest = ""
    with open(path, encoding=encoding) as lines:
        for line in lines:
            line = line.rstrip("\\n")
            if len(line) > len(longest):
                longest = line
    return longest
'''
REPORT = """\
The committee met on Tuesday to discuss the new bridge over the river Wye. Its chairman, Edmund \
Hale, said that the old bridge carries four times the traffic it was built for. "We have \
repaired it eleven times in nine years," he said, "and every repair was more expensive than the \
one before." Two members asked whether a ferry would be cheaper. The engineer, Ruth Calder, \
answered that a ferry would save money for six years and cost more in every year after that. """
# An edit as a base model goes on with it: one example done, the next begun.
EDIT = (
    f"Rename `counts` to `totals`.\n\nBefore:\n\n{FUNCTION}\nAfter:\n\n{RENAMED}\n"
    f"Rename `longest` to `best`.\n\nBefore:\n\n{OTHER}\nAfter:\n\ndef longest_line("
)
QUOTING = f"Article:\n\n{REPORT}\n\nThe most important sentences, quoted in full:\n\n1."
# name, prompt, temperature
TEXTS: tuple[tuple[str, str, float], ...] = (
    ("copying: edited code", EDIT, 0.0),
    ("copying: quotations", QUOTING, 0.0),
    ("prose, 0.8", "Once upon a time", 0.8),
    ("prose, 0.8", "The history of the town begins with", 0.8),
)
SEED = 7


def serve(model: str, tokens: int, speculation: str, draft: str | None) -> None:
    """Answer each line, the number of a text, with one line of JSON."""
    import bluejay

    lm = bluejay.load(model)
    options: dict[str, Any] = {"speculation": speculation}
    if draft is not None:
        options["draft"] = bluejay.load(draft)
    for line in sys.stdin:
        _, prompt, temperature = TEXTS[int(line)]
        begun = 0.0
        for delta in lm.deltas(
            prompt, max_tokens=tokens, temperature=temperature, seed=SEED, **options
        ):
            begun = begun or time.perf_counter()  # the first text is there: prefill is over
            done = delta.completion
        assert done is not None
        answer = {
            "seconds": time.perf_counter() - begun,
            "ids": done.ids,
            "drafted": done.num_drafted,
            "accepted": done.num_accepted,
        }
        print(json.dumps(answer), flush=True)


class Side:
    """A process that writes when it is told to."""

    def __init__(self, given: argparse.Namespace, speculation: str) -> None:
        command = [sys.executable, __file__, given.model, "--tokens", str(given.tokens)]
        if speculation != "off" and given.draft is not None:
            command += ["--draft", given.draft]
        self._process = subprocess.Popen(
            [*command, "--serve", speculation],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def write(self, number: int) -> dict[str, Any]:
        """Write text `number`: seconds, ids, and what was drafted and accepted."""
        stdin, stdout = _pipe(self._process.stdin), _pipe(self._process.stdout)
        stdin.write(f"{number}\n")
        stdin.flush()
        answer: dict[str, Any] = json.loads(stdout.readline())
        return answer

    def close(self) -> None:
        _pipe(self._process.stdin).close()
        self._process.wait()


def _pipe(pipe: IO[str] | None) -> IO[str]:
    assert pipe is not None
    return pipe


def looping_share(ids: Sequence[int], *, length: int = 8, times: int = 3) -> float:
    """The share of ids inside an n-gram of this length that occurs so many times."""
    grams = [tuple(ids[at : at + length]) for at in range(len(ids) - length + 1)]
    counts = Counter(grams)
    inside = {
        at + offset
        for at, gram in enumerate(grams)
        if counts[gram] >= times
        for offset in range(length)
    }
    return len(inside) / max(1, len(ids))


def measure(given: argparse.Namespace) -> list[tuple[str, ...]]:
    """One row of the table for each text."""
    sides = {"off": Side(given, "off"), "on": Side(given, "auto")}
    names = list(sides)
    rows = []
    for number, (name, _, _) in enumerate(TEXTS):
        for _ in range(2):  # programs are loaded, and their times known
            for side in names:
                sides[side].write(number)
        rates: dict[str, list[float]] = {side: [] for side in names}
        for turn in range(given.rounds):
            answers = {}
            for side in names if turn % 2 == 0 else names[::-1]:
                answers[side] = sides[side].write(number)
                rates[side].append(len(answers[side]["ids"]) / answers[side]["seconds"])
            assert answers["on"]["ids"] == answers["off"]["ids"], "speculation changed the text"
        off, on, last = median(rates["off"]), median(rates["on"]), answers["on"]
        ratio = median(a / b for a, b in zip(rates["on"], rates["off"], strict=True))
        loops = looping_share(last["ids"])
        drafts = f"{last['accepted']} of {last['drafted']}"
        rows.append((name, f"{off:.1f}", f"{on:.1f}", f"{ratio:.2f}", drafts, f"{loops:.0%}"))
        print(" | ".join(rows[-1]), file=sys.stderr, flush=True)
    for side in sides.values():
        side.close()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", nargs="?", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--draft", help="a smaller model that drafts, in place of look-ups")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.model, given.tokens, given.serve, given.draft)
        return
    rows = measure(given)
    print(f"{given.model}, {given.tokens} tokens, medians of {given.rounds}; {date.today()}\n")
    head = ("text", "off, tokens/s", "on, tokens/s", "ratio of pairs", "accepted", "looping")
    print("| " + " | ".join(head) + " |\n|---|---:|---:|---:|---:|---:|")
    print("\n".join("| " + " | ".join(row) + " |" for row in rows))


if __name__ == "__main__":
    main()
