"""Bluejay: rates by `bluejay bench`, the start through its Python API as a user writes it.

    bluejay bench MODEL --batch 1,4,8,16 --prompt 128,512,2048 --context 0,1900 --tokens 64
                        --threads 2 --json

prints one JSON object, of which this reads:

    {"version": "0.1.0",
     "decode": [{"batch": 4, "context": 0, "decode_tokens_per_s": 210.0}, ...],
     "prefill": [{"prompt": 128, "prefill_tokens_per_s": 400.0}, ...],
     "load_s": 0.2, "first_token_s": 0.9, "peak_rss_mb": 420.0,
     "bytes_per_token": 1.7e8, "bandwidth_gb_s": 28.1, "overhead_us": 90.0}

`decode_tokens_per_s` is summed over rows; context 0 comes with every batch, deeper contexts with
the first batch alone (side.py says why). What is not a list is kept in the raw readings as it is.
"""

import json
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from side import FIRST_PROMPT, Answers, Request, output_to_stderr, random_ids, request, skip

ENGINE = "Bluejay"


def rates(asked: Request) -> None:
    options = {
        "--batch": asked.batches,
        "--prompt": asked.prompts,
        "--context": asked.contexts,
        "--tokens": (asked.tokens,),
        "--threads": (asked.threads,),
    }
    command = [sys.executable, "-m", "bluejay", "bench", asked.model, "--json"]
    for name, given in options.items():
        command += [name, ",".join(map(str, given))]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        skip(ENGINE, f"bluejay bench failed: {done.stderr.strip()[-250:]}")
    found = json.loads(done.stdout)
    said = Answers(ENGINE, str(found.get("version", version("bluejay"))))
    for item in found["prefill"]:
        said.say("prefill", prompt=item["prompt"], tokens_per_s=float(item["prefill_tokens_per_s"]))
    for item in found["decode"]:
        rate = float(item["decode_tokens_per_s"])
        said.say("decode", batch=item["batch"], context=item["context"], tokens_per_s=rate)
    found["model"] = Path(asked.model).name  # readings are kept, this machine's folders are not
    said.say("details", **{k: v for k, v in found.items() if isinstance(v, int | float | str)})


def start(asked: Request) -> None:
    try:
        with output_to_stderr():
            import bluejay

            opened = time.perf_counter()
            model = bluejay.load(asked.model, dtype=asked.variant or None)
            loading = time.perf_counter() - opened
            [ids] = random_ids(1, FIRST_PROMPT, model.config.vocab_size)
            logits = model.runner.start(ids).logits
            assert int(logits.argmax()) >= 0
    except Exception as error:  # an engine that cannot load is a reading, not a traceback
        skip(ENGINE, error)
    said = Answers(ENGINE, version("bluejay"))
    said.first_token(asked.began)
    said.say("load", seconds=loading)


def main() -> None:
    asked = request(__doc__)
    try:
        version("bluejay")
    except PackageNotFoundError:
        skip(ENGINE, f"{sys.executable} has no Bluejay")
    (rates if asked.what == "rates" else start)(asked)


if __name__ == "__main__":
    main()
