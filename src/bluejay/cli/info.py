"""`bluejay info`: a model's tensors, parameters and memory."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

from bluejay.checkpoints.catalogue import find_entry
from bluejay.checkpoints.locate import locate
from bluejay.cli.parser import CommandParser
from bluejay.cli.status import size_words, status
from bluejay.cli.table import print_table, print_text
from bluejay.cli.terminal import styled
from bluejay.core.errors import CheckpointError, UsageError
from bluejay.model.config import DecoderConfig
from bluejay.model.presets import PRESETS

if TYPE_CHECKING:
    from bluejay.checkpoints.model_files import ModelFiles
    from bluejay.runs.model_info import ModelInfo


def add_arguments(parser: CommandParser) -> None:
    """The options of `bluejay info`."""
    parser.add_argument(
        "model",
        metavar="MODEL_OR_PRESET",
        help="a name, folder, file or owner/name; or a published size, such as gptj-6b",
    )
    parser.add_argument("--all", action="store_true", help="list every tensor of every block")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> None:
    """Print what the model is made of and what it needs."""
    with status() as shown:
        shown.say(f"Looking at {arguments.model}")
        config, facts = _open(arguments.model)
        from bluejay.runs.model_info import description, model_info

        info = model_info(config)
    if arguments.json:
        print(json.dumps(_document(info, facts), ensure_ascii=False, indent=2))
        return
    print(styled(arguments.model, "bold"))
    print_table([*facts.items(), *description(config)], flexible=1, indent="  ")
    print()
    _print_tensors(info, is_complete=arguments.all)
    print()
    _print_memory(info)


def _open(name: str) -> tuple[DecoderConfig, dict[str, str]]:
    """The config of a model that is here, else of the preset of that name; and where from."""
    try:
        path = locate(name)
    except (CheckpointError, UsageError):
        if name.lower() not in PRESETS:
            raise
        known = {"from": "the published sizes; no model of that name is here"}
        return PRESETS[name.lower()], _published(name) | known
    from bluejay.checkpoints.model_files import open_model

    model = open_model(path)
    try:
        return model.config, _published(name) | _facts(model)
    finally:
        model.close()


def _published(name: str) -> dict[str, str]:
    entry = find_entry(name)
    return {"good for": entry.good_for, "licence": entry.licence} if entry else {}


def _facts(model: ModelFiles) -> dict[str, str]:
    counts: dict[str, int] = {}
    for tensor in model.source.tensors.values():
        kind = tensor.packing or tensor.dtype.name
        counts[kind] = counts.get(kind, 0) + 1
    dtypes = ", ".join(f"{count} tensors {name}" for name, count in sorted(counts.items()))
    return {
        "from": str(model.path),
        "format": f"{model.format}, family {model.family}",
        "stored": f"{dtypes}, {size_words(model.num_bytes)} as read",
    }


def _print_tensors(info: ModelInfo, *, is_complete: bool) -> None:
    rows = [
        [
            group.name,
            " x ".join(map(str, group.shape)),
            str(group.num_tensors),
            f"{group.parameters:,}",
            f"{group.parameters / info.parameters:.1%}",
        ]
        for group in (info.tensors if is_complete else info.groups())
    ]
    total = ["in all", "", str(info.num_tensors), f"{info.parameters:,}", ""]
    header = ["tensor", "shape", "count", "parameters", "share"]
    print_table([*rows, total], header=header, right=[2, 3, 4])


def _print_memory(info: ModelInfo) -> None:
    rows = [
        [dtype, size_words(info.weight_bytes[dtype]), size_words(info.cache_bytes[dtype])]
        for dtype in info.weight_bytes
    ]
    header = ["memory", "weights", "keys and values of 2048 tokens"]
    print_table(rows, header=header, right=[1])
    print()
    print_text(
        f"One token forward: {info.flops_per_token / 1e9:.4g} GFLOP, "
        f"attending to {info.attended_positions:,} positions."
    )


def _document(info: ModelInfo, facts: dict[str, str]) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        **facts,
        "config": asdict(info.config),
        "parameters": info.parameters,
        "num_tensors": info.num_tensors,
        "weight_bytes": dict(info.weight_bytes),
        "cache_bytes_2048_tokens": dict(info.cache_bytes),
        "flops_per_token": info.flops_per_token,
        "attended_positions": info.attended_positions,
        "tensors": [{"name": tensor.name, "shape": tensor.shape} for tensor in info.tensors],
    }
