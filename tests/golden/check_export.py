"""Load a folder that Bluejay exported with transformers, and compare the two sides' logits.

Run by hand in the golden environment (README.md beside this file):

    python tests/golden/check_export.py FOLDER LOGITS.npz

LOGITS.npz, written by the exporting side, holds `input_ids` [B, T] and `logits` [B, T, V] in fp32.
It may hold `token_ids`, a JSON list of `{"text": ..., "ids": [...]}`: `AutoTokenizer` must then
encode each text to the same ids and decode them back to the text. Exit status 1 when a tensor is
missing, left over or of another shape, when logits differ by more than 1e-4, or when a text does.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

LARGEST_DIFFERENCE = 1e-4


def tensor_failures(info: dict[str, object]) -> list[str]:
    """What `from_pretrained` only warns about."""
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    return [f"{kind}: {info[kind]}" for kind in kinds if info.get(kind)]


def logits_failures(
    model: transformers.PreTrainedModel, ids: np.ndarray, expected: np.ndarray
) -> list[str]:
    """Prints the largest difference next to the logits' own scale."""
    with torch.no_grad():
        logits = model(torch.from_numpy(ids.astype(np.int64))).logits.numpy()
    if logits.shape != expected.shape:
        return [f"logits have shape {logits.shape}, the file's have {expected.shape}"]
    difference = float(np.abs(logits - expected).max())
    print(
        f"largest logit difference {difference:.2e} (logits: std {expected.std():.2f}, "
        f"largest {np.abs(expected).max():.2f}; {logits.size} compared)"
    )
    if difference <= LARGEST_DIFFERENCE:  # a NaN fails too
        return []
    return [f"logits differ by {difference:.2e}, more than {LARGEST_DIFFERENCE:.0e}"]


def token_failures(folder: Path, cases: list[dict[str, object]]) -> list[str]:
    """Texts whose ids, or whose decoded text, are not the exporting side's."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    failures = []
    for case in cases:
        ids = tokenizer.encode(case["text"], add_special_tokens=False)
        if ids != case["ids"]:
            failures.append(f"{case['text']!r} is {ids} here and {case['ids']} in the file")
        elif tokenizer.decode(ids, clean_up_tokenization_spaces=False) != case["text"]:
            failures.append(f"{case['text']!r} decodes to {tokenizer.decode(ids)!r}")
    print(f"{type(tokenizer).__name__}: {len(cases) - len(failures)} of {len(cases)} texts agree")
    return failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("logits", type=Path)
    arguments = parser.parse_args()
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        arguments.folder,
        dtype=torch.float32,
        attn_implementation="eager",
        local_files_only=True,
        output_loading_info=True,
    )
    print(f"{type(model).__name__}, {model.num_parameters():,} parameters")
    with np.load(arguments.logits, allow_pickle=False) as stored:
        ids, expected = stored["input_ids"], stored["logits"]
        texts = json.loads(str(stored["token_ids"])) if "token_ids" in stored.files else None
    failures = tensor_failures(info) + logits_failures(model.eval(), ids, expected)
    if texts is not None:
        failures += token_failures(arguments.folder, texts)
    for failure in failures:
        print(f"FAILED: {failure}", file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
