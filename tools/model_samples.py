"""Ten samples of 120 tokens, as Markdown: fixed prompts, seed 0, the defaults of sampling.

    python tools/model_samples.py bluejay-tiny

None is picked: the prompts were written before there was a model.
"""

import sys

import bluejay

PROMPTS = (
    "Once upon a time",
    "The old man looked at the sea and",
    '"I do not know," said',
    "It was a dark and stormy night",
    "My dear friend,",
    "In the morning the children",
    "The train stopped at a small station, and",
    "She opened the letter and read:",
    "There was once a king who",
    "London, in the winter of",
)
NUM_TOKENS = 120


def main(model: str) -> None:
    lm = bluejay.load(model)
    for prompt in PROMPTS:
        text = lm.generate(prompt, max_tokens=NUM_TOKENS, seed=0)
        lines = (prompt + text).split("\n")
        print("\n".join(f"> {line}".rstrip() for line in lines) + "\n")


if __name__ == "__main__":
    main(sys.argv[1])
