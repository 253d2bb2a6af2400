"""CTranslate2 through its generator. The prompt's last token is a step of its own there, and only
that step has logits, so a prefill is a generation of one token.
"""

import time
from importlib.metadata import version

from side import FIRST_PROMPT, Answers, output_to_stderr, random_ids, request, seconds, skip

ENGINE = "CTranslate2"


class Side:
    def __init__(self, folder: str, threads: int, compute: str) -> None:
        import ctranslate2

        self._generator = ctranslate2.Generator(
            folder, device="cpu", intra_threads=threads, compute_type=compute or "default"
        )
        self.vocabulary = 50400

    def generate(self, rows: int, prompt: int, tokens: int) -> None:
        ids = random_ids(rows, prompt, self.vocabulary)
        self._generator.generate_batch(
            [[f"<{number}>" for number in row] for row in ids],
            max_length=tokens,
            min_length=tokens,
            beam_size=1,
            sampling_topk=1,
            include_prompt_in_result=False,
            max_batch_size=0,
        )


def main() -> None:
    asked = request(__doc__)
    try:
        opened = time.perf_counter()
        with output_to_stderr():
            side = Side(asked.model, asked.threads, asked.variant)
        loading = time.perf_counter() - opened
    except (ImportError, RuntimeError) as error:
        skip(ENGINE, error)
    said = Answers(ENGINE, version("ctranslate2"))
    if asked.what == "start":
        side.generate(1, FIRST_PROMPT, 1)
        said.first_token(asked.began)
        said.say("load", seconds=loading)
        return
    side.generate(1, 8, 2)
    for prompt in asked.prompts:
        said.say(
            "prefill",
            prompt=prompt,
            tokens_per_s=prompt / seconds(lambda n=prompt: side.generate(1, n, 1)),
        )
    for batch, context in asked.decode_cases:
        depth = max(context, 1)
        first = seconds(lambda b=batch, n=depth: side.generate(b, n, 1))
        whole = seconds(lambda b=batch, n=depth: side.generate(b, n, 1 + asked.tokens))
        rate = batch * asked.tokens / (whole - first)
        said.say("decode", batch=batch, context=context, tokens_per_s=rate)


if __name__ == "__main__":
    main()
