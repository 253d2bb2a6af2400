"""Published evaluation sets as tasks of lm-evaluation-harness, made from local files."""

import bz2
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import zstandard

Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Task:
    """`file` lies in the data's `evals/`; `settings` are those of the harness."""

    file: str
    settings: Record
    read: Callable[[Path], Iterator[Record]]


def read_lines(path: Path) -> Iterator[Record]:
    """The records of a jsonl file, packed or not."""
    data = path.read_bytes()
    if path.suffix == ".zst":
        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    return (json.loads(line) for line in data.decode().splitlines())


def read_hellaswag(path: Path) -> Iterator[Record]:
    """Six lines a record: the context, the number of the right ending, four endings."""
    lines = bz2.decompress(path.read_bytes()).decode().splitlines()
    for start in range(0, len(lines) - 5, 6):
        context, gold, *choices = lines[start : start + 6]
        yield {"query": context, "gold": int(gold), "choices": choices}


def _choices(**others: Any) -> Record:
    measured = [{"metric": "acc"}, {"metric": "acc_norm"}]
    return {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold",
            "metric_list": measured} | others  # fmt: skip


TASKS = {
    "arc_easy": Task(
        file="arc/arc_easy.jsonl",
        read=read_lines,
        settings=_choices(doc_to_text="{{query}}\nAnswer:"),
    ),
    "openbookqa": Task(
        file="openbookqa/openbook_qa.jsonl",
        read=read_lines,
        settings=_choices(doc_to_text="{{query}}"),
    ),
    "hellaswag": Task(
        file="hellaswag/hellaswag_val_full.txt.bz2",
        read=read_hellaswag,
        settings=_choices(doc_to_text="{{query}}"),
    ),
    # The contexts differ, and what is scored is the same behind each.
    "winogrande": Task(
        file="winogrande/winogrande.jsonl",
        read=read_lines,
        settings={
            "output_type": "multiple_choice",
            "doc_to_text": "gold",
            "doc_to_choice": "context_options",
            "doc_to_target": "continuation",
            "metric_list": [{"metric": "acc"}],
        },
    ),
    "lambada": Task(
        file="lambada/lambada_test.jsonl.zst",
        read=read_lines,
        settings={
            "output_type": "loglikelihood",
            "doc_to_text": "{{text.split(' ')[:-1]|join(' ')}}",
            "doc_to_target": "{{' ' + text.split(' ')[-1]}}",
            "target_delimiter": "",
            "metric_list": [{"metric": "acc"}, {"metric": "perplexity"}],
        },
    ),
    # The same texts from their first token on: what is scored has no context.
    "whole_texts": Task(
        file="lambada/lambada_test.jsonl.zst",
        read=read_lines,
        settings={
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}],
        },
    ),
}


def write_task(name: str, data: Path, folder: Path, count: int) -> None:
    """The first records of a task, and the yaml file (which JSON is) that the harness reads."""
    task = TASKS[name]
    records = islice(task.read(data / task.file), count)
    write_task_files(name, task.settings, list(records), folder)


def write_task_files(name: str, settings: Record, records: list[Record], folder: Path) -> None:
    """As `write_task`, of records that are here."""
    lines = (json.dumps(record) + "\n" for record in records)
    (folder / f"{name}.jsonl").write_text("".join(lines))
    own = {
        "task": f"local_{name}",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
        "test_split": "test",
    }
    (folder / f"{name}.yaml").write_text(json.dumps(own | settings, indent=2))
