"""From what a user typed to the file or folder that holds the model.

What a text means, in this order:
1. a path, if it contains a separator, starts with `.` or `~`, or ends in a suffix of a model file,
   and something is there;
2. `owner/name` or `owner/name@revision`, a repository in Hugging Face's cache;
3. a name of the catalogue, in any case, `@revision` allowed for those from the hub;
4. a file or folder of that name in the current folder.
So a folder that happens to be called `gpt2` does not hide the model gpt2: write `./gpt2`.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bluejay.checkpoints.catalogue import (
    CATALOGUE,
    BundledSource,
    CatalogueEntry,
    HubSource,
    find_entry,
    unknown_name,
)
from bluejay.checkpoints.hub_cache import (
    HubId,
    cached_snapshot,
    parse_hub_id,
    present_files,
    weight_files,
)
from bluejay.checkpoints.model_cache import cached_model, folder_bytes, size_text
from bluejay.checkpoints.run_checkpoints import newest_of_run
from bluejay.core.errors import CheckpointError, MemoryLimitError, UsageError

PATH_SUFFIXES = (".gguf", ".safetensors", ".bin", ".json", ".npz", ".pt", ".pth", ".ggml")
FIRST_MODEL = "smollm2-135m-instruct"
_BUNDLED_ROOT = Path(__file__).resolve().parent.parent / "bundled"
_MEMORY_SHARE = 0.8
"""Of the machine's memory, what weights may take: the rest is for the cache, JAX and others."""


@dataclass(frozen=True, kw_only=True)
class PresentModel:
    """A model of the catalogue that is on this machine."""

    entry: CatalogueEntry
    path: Path
    kept_in: Literal["bluejay", "cache", "hub"]
    num_bytes: int


def locate(model: str | Path | None = None) -> Path:
    """The file or folder of `model`; None means the best one that is on this machine.

    Raises UsageError for what is no model at all, CheckpointError for one that has to be pulled
    first. Nothing is downloaded and no file is opened.
    """
    if model is None:
        return best_present().path
    if isinstance(model, Path):
        return _existing(model)
    text = model.strip()
    if not text:
        raise UsageError("The model has an empty name: `bluejay models` lists the names.")
    if _looks_like_path(text) and os.path.exists(os.path.expanduser(text)):
        return _existing(Path(text).expanduser())
    hub_id = hub_id_of(text)
    if hub_id is not None:
        return cached_snapshot(hub_id) or _raise_not_pulled(text)
    entry = find_entry(text)
    if entry is not None:
        return find_present(entry) or _raise_not_pulled(entry.name)
    if _looks_like_path(text) or os.path.exists(text):
        return _existing(Path(text).expanduser())
    raise unknown_name(text)


def hub_id_of(text: str) -> HubId | None:
    """The repository that `text` stands for: `owner/name`, or a name of one from the hub."""
    name, _, revision = text.partition("@")
    entry = find_entry(name)
    if entry is None:
        return parse_hub_id(text)
    if not isinstance(entry.source, HubSource):
        if revision:
            raise UsageError(f"{entry.name} has no revisions: leave out {'@' + revision!r}.")
        return None
    return parse_hub_id(f"{entry.source.repository}@{revision or entry.source.revision}")


def find_present(entry: CatalogueEntry) -> Path | None:
    """Where the model of `entry` is on this machine, or None; nothing is downloaded."""
    if isinstance(entry.source, BundledSource):
        bundled = bundled_folder(entry.source)
        return bundled if bundled.is_dir() else None
    if isinstance(entry.source, HubSource):
        source = entry.source
        return cached_snapshot(HubId(repository=source.repository, revision=source.revision))
    folder = cached_model(entry.name)
    return None if folder is None else model_in_folder(folder)


def present_models() -> list[PresentModel]:
    """The models of the catalogue that are on this machine, in the catalogue's order."""
    found = []
    for entry in CATALOGUE.values():
        path = find_present(entry)
        if path is not None:
            kept_in = _keeper(entry)
            num_bytes = _model_bytes(path)
            found.append(PresentModel(entry=entry, path=path, kept_in=kept_in, num_bytes=num_bytes))
    return found


def best_present(memory_bytes: int | None = None) -> PresentModel:
    """The model that is used when none is named: the one with most parameters that fits.

    A bundled one is always there, and is used until a larger one has been pulled.

    `memory_bytes` is the machine's memory unless given; weights may take four fifths of it.
    """
    here = present_models()
    if not here:
        entry = CATALOGUE[FIRST_MODEL]
        raise CheckpointError(
            f"No model is on this machine yet: run `bluejay pull {FIRST_MODEL}` "
            f"({size_text(entry.download_bytes)})."
        )
    memory = machine_memory() if memory_bytes is None else memory_bytes
    fitting = [present for present in here if present.num_bytes <= _MEMORY_SHARE * memory]
    if not fitting:
        smallest = min(here, key=lambda present: present.num_bytes)
        raise MemoryLimitError(
            f"The smallest model here, {smallest.entry.name}, has {size_text(smallest.num_bytes)} "
            f"of weights, too much for {size_text(memory)} of memory: run `bluejay pull "
            f"{FIRST_MODEL}`, or name a model with --model to try all the same."
        )
    return max(fitting, key=lambda present: present.entry.parameters)


def bundled_folder(source: BundledSource) -> Path:
    """The folder of a model that came with the package."""
    return _BUNDLED_ROOT / source.folder


def model_in_folder(folder: Path) -> Path:
    """The model in a folder of the cache: the folder, or the one GGUF file that it is kept as."""
    files = sorted(folder.iterdir())
    return files[0] if len(files) == 1 and files[0].suffix == ".gguf" else folder


def machine_memory() -> int:
    """Bytes of memory that this process may come to use: the machine's, or its container's."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return physical
    return min(physical, int(limit)) if limit.isdigit() else physical


def _looks_like_path(text: str) -> bool:
    separators = (os.sep, os.altsep or os.sep)
    has_separator = any(separator in text for separator in separators)
    return has_separator or text.startswith((".", "~")) or text.lower().endswith(PATH_SUFFIXES)


def _existing(path: Path) -> Path:
    if not path.exists():
        raise UsageError(
            f"There is no file or folder {str(path)[:200]!r}: check the path, or choose a name "
            "from `bluejay models`."
        )
    return newest_of_run(path) if (path / "run.json").is_file() else path


def _raise_not_pulled(name: str) -> Path:
    entry = find_entry(name)
    size = f" ({size_text(entry.download_bytes)})" if entry else ""
    near = " (nor is there a folder of that name)" if "/" in name else ""
    raise CheckpointError(
        f"{name} is not on this machine yet{near}: run `bluejay pull {name}`{size}."
    )


def _keeper(entry: CatalogueEntry) -> Literal["bluejay", "cache", "hub"]:
    if isinstance(entry.source, BundledSource):
        return "bluejay"
    return "hub" if isinstance(entry.source, HubSource) else "cache"


def _model_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    weights = weight_files(present_files(path))
    # Links of a hub snapshot are followed, and only the weights that are used count.
    return sum((path / name).stat().st_size for name in weights) or folder_bytes(path)
