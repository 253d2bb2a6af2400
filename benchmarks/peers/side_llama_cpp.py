"""llama.cpp: rates by its own benchmarks, the start through its Python bindings.

Options are the engine's defaults but for the threads: 16-bit cache, flash attention where it has
it, weights repacked at load. PEERS/llama.cpp/bin is found beside the Python that runs this, or by
LLAMA_CPP_LIB_PATH.
"""

import json
import os
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from side import (
    FIRST_PROMPT,
    Answers,
    Request,
    output_to_stderr,
    random_ids,
    request,
    seconds,
    skip,
)

ENGINE = "llama.cpp"


def binaries() -> Path:
    named = os.environ.get("LLAMA_CPP_LIB_PATH")
    folder = Path(named) if named else Path(sys.prefix).parent / "llama.cpp" / "bin"
    if not (folder / "llama-bench").exists():
        skip(
            ENGINE, f"there is no llama-bench in {folder}: build it with benchmarks/peers/build.sh"
        )
    return folder


def release() -> str:
    """Of the package that the sources came with: they carry no number of their own."""
    try:
        return f"of llama-cpp-python {version('llama-cpp-python')}"
    except PackageNotFoundError:
        return "unknown"


def output(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        skip(ENGINE, f"{Path(command[0]).name} failed: {done.stderr.strip()[-200:]}")
    return done.stdout


def bench(asked: Request, folder: Path, options: list[str]) -> list[dict[str, float]]:
    command = [str(folder / "llama-bench"), "-m", asked.model, "-t", str(asked.threads)]
    return json.loads(output([*command, "-r", "1", "-o", "json", *options]) or "[]")


def rates(asked: Request, folder: Path, said: Answers) -> None:
    if asked.prompts:
        prompts = ",".join(map(str, asked.prompts))
        for found in bench(asked, folder, ["-p", prompts, "-n", "0", "-b", "2048", "-ub", "512"]):
            said.say("prefill", prompt=found["n_prompt"], tokens_per_s=found["avg_ts"])
    single = [context for batch, context in asked.decode_cases if batch == 1]
    if single:
        depths = ",".join(map(str, single))
        for found in bench(asked, folder, ["-p", "0", "-n", str(asked.tokens), "-d", depths]):
            said.say("decode", batch=1, context=found["n_depth"], tokens_per_s=found["avg_ts"])
    for batch, context in asked.decode_cases:
        if batch > 1:
            batched(asked, folder, said, (batch, context))


def batched(asked: Request, folder: Path, said: Answers, case: tuple[int, int]) -> None:
    """Rows with prompts of their own, then `tokens` steps of all rows together."""
    batch, context = case
    prompt = max(context, 1)
    needed = batch * (prompt + asked.tokens)
    command = [str(folder / "llama-batched-bench"), "-m", asked.model, "-t", str(asked.threads)]
    command += ["-c", str(needed), "-npp", str(prompt), "-ntg", str(asked.tokens)]
    command += ["-npl", str(batch), "--output-format", "jsonl"]
    for line in output(command).splitlines():
        if line.startswith("{"):
            found = json.loads(line)
            said.say("decode", batch=batch, context=context, tokens_per_s=found["speed_tg"])


def start(asked: Request, folder: Path, said: Answers) -> None:
    os.environ["LLAMA_CPP_LIB_PATH"] = str(folder)
    try:
        import llama_cpp as lib
    except (ImportError, OSError, RuntimeError) as error:
        skip(ENGINE, f"llama-cpp-python cannot be imported: {error}")
    with output_to_stderr():
        lib.llama_backend_init()
        opened = time.perf_counter()
        model = lib.llama_model_load_from_file(
            asked.model.encode(), lib.llama_model_default_params()
        )
        if not model:
            skip(ENGINE, f"{asked.model} does not load")
        options = lib.llama_context_default_params()
        options.n_ctx = 256
        options.n_threads = options.n_threads_batch = asked.threads
        context = lib.llama_init_from_model(model, options)
        loading = time.perf_counter() - opened
        vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))
        [ids] = random_ids(1, FIRST_PROMPT, vocabulary)
        tokens = (lib.llama_token * len(ids))(*ids)
        taken = seconds(
            lambda: lib.llama_decode(context, lib.llama_batch_get_one(tokens, len(ids)))
        )
        row = lib.llama_get_logits_ith(context, -1)
        assert max(range(vocabulary), key=row.__getitem__) >= 0
    said.first_token(asked.began)
    said.say("load", seconds=loading, prompt_seconds=taken)


def main() -> None:
    asked = request(__doc__)
    folder = binaries()
    (rates if asked.what == "rates" else start)(asked, folder, Answers(ENGINE, release()))


if __name__ == "__main__":
    main()
