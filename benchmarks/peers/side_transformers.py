"""transformers on torch, eager, in the dtype that `--variant` names (float32)."""

import time
from importlib.metadata import version
from typing import Any

from side import FIRST_PROMPT, Answers, output_to_stderr, random_ids, request, seconds, skip

ENGINE = "transformers"


class Side:
    def __init__(self, folder: str, threads: int, dtype: str) -> None:
        import torch
        import transformers

        transformers.logging.set_verbosity_error()
        transformers.utils.logging.disable_progress_bar()
        self._torch = torch
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype)
        ).eval()
        self._vocabulary = self._model.config.vocab_size
        self._cache = None

    def prefill(self, rows: int, length: int) -> Any:
        """The likeliest next ids, [rows, 1]."""
        self._cache = None
        return self._extend(self._torch.tensor(random_ids(rows, length, self._vocabulary)))

    def decode(self, last: Any, tokens: int) -> None:
        for _ in range(tokens):
            last = self._extend(last)

    def _extend(self, ids: Any) -> Any:
        found = self._model(
            input_ids=ids, past_key_values=self._cache, use_cache=True, logits_to_keep=1
        )
        self._cache = found.past_key_values
        return found.logits[:, -1].argmax(-1, keepdim=True)


def main() -> None:
    asked = request(__doc__)
    try:
        opened = time.perf_counter()
        with output_to_stderr():
            side = Side(asked.model, asked.threads, asked.variant or "float32")
        loading = time.perf_counter() - opened
    except (ImportError, OSError, ValueError) as error:
        skip(ENGINE, error)
    said = Answers(ENGINE, f"{version('transformers')}, torch {version('torch')}")
    if asked.what == "start":
        side.prefill(1, FIRST_PROMPT)
        said.first_token(asked.began)
        said.say("load", seconds=loading)
        return
    side.decode(side.prefill(1, 8), 2)
    for prompt in asked.prompts:
        taken = seconds(lambda n=prompt: side.prefill(1, n))
        said.say("prefill", prompt=prompt, tokens_per_s=prompt / taken)
    for batch, context in asked.decode_cases:
        last = side.prefill(batch, max(context, 1))
        taken = seconds(lambda n=last: side.decode(n, asked.tokens))
        rate = batch * asked.tokens / taken
        said.say("decode", batch=batch, context=context, tokens_per_s=rate)


if __name__ == "__main__":
    main()
