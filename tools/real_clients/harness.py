"""lm-evaluation-harness scores by the server; the model in this process scores the same texts."""

import json
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bluejay.runs.language_model import LanguageModel
from bluejay.text.conventions import conventions_of
from real_clients.scoring_tasks import write_task
from real_clients.servers import Server, require, run_quietly

# What the issue of comparing numbers between programs asks for.
TOLERANCE = 1e-4
OFFLINE = {"HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
Sample = dict[str, Any]


def check_harness(
    server: Server, model: LanguageModel, programs: Path, data: Path, tasks: Sequence[str],
    count: int,
) -> None:  # fmt: skip
    """Every score of every example, and every figure of every task. Miss where one differs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for task in tasks:
            write_task(task, data, folder, count)
        run_harness(server, programs, folder, tasks, start=_start(model))
        for task in tasks:
            _compare(task, server, model, folder)


def run_harness(
    server: Server, programs: Path, folder: Path, tasks: Sequence[str], *, start: int
) -> None:
    """Run it over the tasks of a folder; what it finds lies in its `found`. `start` is the token
    that texts begin with: it asks the server, but takes a 0, which SmolLM2 has, for none."""
    arguments = {
        "model": server.model,
        "base_url": f"{server.url}/v1/completions",
        "max_length": server.context,
        "num_concurrent": 8,
        "custom_prefix_token_id": start,
    }
    run_quietly(
        [str(programs / "lm-eval"), "run", "--model", "local-completions",
         "--model_args", ",".join(f"{name}={value}" for name, value in arguments.items()),
         "--include_path", str(folder), "--tasks", ",".join(f"local_{t}" for t in tasks),
         "--log_samples", "--output_path", str(folder / "found")],
        folder, **OFFLINE, HF_HOME=str(folder / "hf"),
    )  # fmt: skip


def read_samples(folder: Path, task: str) -> list[Sample]:
    """What it found for each example, in their order."""
    [path] = (folder / "found").glob(f"*/samples_local_{task}_*.jsonl")
    samples = [json.loads(line) for line in path.read_text().splitlines()]
    return sorted(samples, key=lambda sample: int(sample["doc_id"]))


def read_figures(folder: Path, task: str) -> dict[str, float]:
    """The figures of a task by the names of their metrics."""
    [path] = (folder / "found").glob("*/results_*.json")
    found = json.loads(path.read_text())["results"][f"local_{task}"]
    return {
        name.partition(",")[0]: value
        for name, value in found.items()
        if name.endswith(",none") and "stderr" not in name
    }


def asked_and_found(sample: Sample) -> list[tuple[list[str], float, bool | None]]:
    """The texts of each request of an example, its log probability, and whether it is greedy."""
    pairs = []
    for arguments, [response] in zip(sample["arguments"].values(), sample["resps"], strict=True):
        texts = list(arguments.values())
        is_pair = isinstance(response, list)
        value = response[0] if is_pair else response
        greedy = str(response[1]) == "True" if is_pair else None
        pairs.append((texts, float(value), greedy))
    return pairs


def _compare(task: str, server: Server, model: LanguageModel, folder: Path) -> None:
    samples = read_samples(folder, task)
    worst, scores = 0.0, []
    for sample in samples:
        own = []
        for texts, value, greedy in asked_and_found(sample):
            score, is_greedy = _score(model, texts)
            # Rolling scores are sums over whole texts: their means are compared.
            num_parts = 1 if len(texts) == 2 else len(model.tokenizer.encode(texts[0]))
            worst = max(worst, abs(score - value) / num_parts)
            own.append((score, is_greedy))
            require_same(task, greedy, is_greedy, texts)
        scores.append(own)
    num_requests = sum(len(own) for own in scores)
    require(
        worst <= TOLERANCE,
        f"lm-eval {task} on {server.model}: {num_requests} log probabilities of {len(samples)}"
        f" examples differ by {worst:.1e} at most",
    )
    figures, expected = read_figures(folder, task), own_figures(samples, scores)
    shown = ", ".join(f"{name} {value:.4f}" for name, value in sorted(figures.items()))
    far = {n: (figures.get(n), v) for n, v in expected.items()
           if not math.isclose(figures[n], v, rel_tol=TOLERANCE, abs_tol=TOLERANCE)}  # fmt: skip
    require(expected and not far, f"lm-eval {task} on {server.model}: {shown}, as here", far)


def require_same(task: str, greedy: bool | None, is_greedy: bool, texts: list[str]) -> None:
    """Both sides agree whether the text is the likeliest; rolling scores do not say."""
    if greedy is not None and greedy != is_greedy:
        require(False, f"lm-eval {task}: is_greedy is the same", texts)


def _score(model: LanguageModel, texts: list[str]) -> tuple[float, bool]:
    context, continuation = texts if len(texts) == 2 else ("", texts[0])
    if len(texts) == 2:
        return model.score(context, continuation)
    ids = model.tokenizer.encode(continuation)
    return _rolling(model, ids)


def _rolling(model: LanguageModel, ids: list[int]) -> tuple[float, bool]:
    """Windows that fill the context less one, each but the first behind the id before it."""
    size = min(model.config.context_length, 2048) - 2
    before, total = _start(model), 0.0
    for first in range(0, len(ids), size):
        part = ids[first : first + size]
        total += model.score_ids([before], part)[0]
        before = part[-1]
    return total, False


def _start(model: LanguageModel) -> int:
    [start] = conventions_of(model.tokenizer).document_start
    return start


def own_figures(samples: list[Sample], scores: list[list[tuple[float, bool]]]) -> dict[str, float]:
    """The harness's figures, computed from scores that were made here."""
    first = samples[0]
    if "choices" in first["doc"] or "context_options" in first["doc"]:
        gold = [int(sample["doc"]["gold"]) for sample in samples]
        values = [np.array([score for score, _ in own]) for own in scores]
        found = {"acc": _share(values, gold)}
        if "choices" in first["doc"]:
            lengths = [np.array([len(c) for c in s["doc"]["choices"]], float) for s in samples]
            found["acc_norm"] = _share([v / n for v, n in zip(values, lengths, strict=True)], gold)
        return found
    if len(first["arguments"]["gen_args_0"]) == 2:
        total = sum(own[0][0] for own in scores)
        greedy = sum(own[0][1] for own in scores)
        return {"acc": greedy / len(scores), "perplexity": math.exp(-total / len(scores))}
    num_bytes = sum(len(sample["doc"]["text"].encode()) for sample in samples)
    return {"bits_per_byte": -sum(own[0][0] for own in scores) / num_bytes / math.log(2)}


def _share(values: "list[np.ndarray[Any, Any]]", gold: list[int]) -> float:
    hits = [int(np.argmax(v)) == g for v, g in zip(values, gold, strict=True)]
    return sum(hits) / len(hits)
