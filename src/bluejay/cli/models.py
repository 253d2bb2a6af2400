"""`bluejay models`: what has a name, what is here, and how to get rid of it."""

import argparse
import json
import sys
from itertools import groupby

from bluejay.checkpoints.catalogue import (
    CATALOGUE,
    BundledSource,
    CatalogueEntry,
    HubSource,
    find_entry,
)
from bluejay.checkpoints.locate import PresentModel, find_present, present_models
from bluejay.checkpoints.model_cache import (
    CachedModel,
    cache_bytes,
    cache_root,
    cached_models,
    remove,
    size_text,
)
from bluejay.cli.parser import CommandParser
from bluejay.cli.table import print_table
from bluejay.cli.terminal import can_show, is_terminal, styled
from bluejay.core.errors import UsageError


def add_arguments(parser: CommandParser) -> None:
    """The options of `bluejay models`."""
    parser.add_argument(
        "words",
        metavar="rm",
        nargs="*",
        help="`rm NAME ...` removes models from the cache; nothing lists all",
    )
    parser.add_argument("--here", action="store_true", help="list only those on this machine")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def run(arguments: argparse.Namespace) -> None:
    """List the catalogue, or remove what is named."""
    action, *names = arguments.words or ["list"]
    if action not in ("list", "rm") or (action == "list" and names):
        raise UsageError(
            f"`bluejay models` lists and `bluejay models rm NAME` removes, but {action!r} is "
            "neither."
        )
    if action == "rm":
        _remove(names)
        return
    present = {model.entry.name: model for model in present_models()}
    others = [model for model in cached_models() if model.name not in CATALOGUE]
    entries = [e for e in CATALOGUE.values() if e.name in present or not arguments.here]
    if arguments.json:
        _print_json(entries, present, others)
    elif is_terminal(sys.stdout):
        _print_grouped(entries, present, others)
    else:
        _print_flat(entries, present)


def _remove(names: list[str]) -> None:
    if not names:
        raise UsageError("`bluejay models rm` needs the NAME of a model to remove.")
    for name in names:
        entry = find_entry(name)
        if entry is not None and isinstance(entry.source, BundledSource):
            raise UsageError(f"{entry.name} is a part of Bluejay: it cannot be removed.")
        if entry is not None and isinstance(entry.source, HubSource):
            place = find_present(entry)
            if place is None:
                raise UsageError(f"{entry.name} is not on this machine: nothing to remove.")
            raise UsageError(
                f"{entry.name} lies in the Hugging Face cache, which other programs use too "
                f"({place}): remove it with `hf cache rm model/{entry.source.repository}`."
            )
        freed = remove(entry.name if entry else name)
        print(f"Removed {name}: {size_text(freed)} are free again.")


def source_text(entry: CatalogueEntry) -> str:
    """Where a model comes from."""
    source = entry.source
    if isinstance(source, BundledSource):
        return "comes with Bluejay"
    if isinstance(source, HubSource):
        revision = "" if source.revision == "main" else f"@{source.revision}"
        return f"{source.repository}{revision}"
    return f"Python package {source.distribution} {source.version}"


def _print_grouped(
    entries: list[CatalogueEntry], present: dict[str, PresentModel], others: list[CachedModel]
) -> None:
    """By use, which neighbours share."""
    tick = "✓" if can_show("✓") else "*"
    columns = max((len(entry.name) for entry in entries), default=0)
    for use, group in groupby(entries, key=lambda entry: entry.good_for):
        print(styled(use[0].upper() + use[1:], "bold"))
        rows = [
            [
                styled(tick, "green") if entry.name in present else " ",
                entry.name.ljust(columns),
                size_text(entry.download_bytes).rjust(7),
                f"{entry.licence}, {source_text(entry)}",
            ]
            for entry in group
        ]
        print_table([[f"{mark} {name}", *rest] for mark, name, *rest in rows], flexible=2)
    print()
    for model in others:
        print(f"Also in the cache: {model.name} ({size_text(model.num_bytes)})")
    if present:
        print(f"{styled(tick, 'green')} is on this machine. `bluejay pull NAME` fetches another.")
    else:
        print("None is on this machine yet: `bluejay pull NAME` fetches one.")
    print(_cache_line())


def _print_flat(entries: list[CatalogueEntry], present: dict[str, PresentModel]) -> None:
    rows = [
        [
            entry.name,
            size_text(entry.download_bytes),
            "here" if entry.name in present else "-",
            entry.licence,
            source_text(entry),
            entry.good_for,
        ]
        for entry in entries
    ]
    header = ["name", "size", "here", "licence", "source", "good for"]
    print_table(rows, header=header, right=[1])
    print(_cache_line(), file=sys.stderr)


def _cache_line() -> str:
    return f"The cache is {cache_root()} ({size_text(cache_bytes())})."


def _print_json(
    entries: list[CatalogueEntry], present: dict[str, PresentModel], others: list[CachedModel]
) -> None:
    models = [
        {
            "name": entry.name,
            "family": entry.family,
            "parameters": entry.parameters,
            "download_bytes": entry.download_bytes,
            "disk_bytes": entry.disk_bytes,
            "licence": entry.licence,
            "source": source_text(entry),
            "good_for": entry.good_for,
            "path": str(present[entry.name].path) if entry.name in present else None,
        }
        for entry in entries
    ]
    document = {
        "cache": {"path": str(cache_root()), "bytes": cache_bytes()},
        "models": models,
        "others": [{"name": model.name, "path": str(model.path)} for model in others],
    }
    print(json.dumps(document, ensure_ascii=False, indent=2))
