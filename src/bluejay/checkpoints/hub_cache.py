"""Models in Hugging Face's own cache, read where they lie and never copied.

Layout (huggingface_hub, "Understand caching"): `models--OWNER--NAME/refs/REVISION` holds a commit,
`snapshots/COMMIT/` holds links to `../../blobs/HASH`. This module needs no huggingface_hub.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9_.-]{0,94}[A-Za-z0-9_])?"
_REPOSITORY = re.compile(rf"{_PART}/{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_./-]{0,126}[A-Za-z0-9_])?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHARD = re.compile(r"(?P<stem>model|pytorch_model)-(?P<number>\d{5})-of-(?P<count>\d{5})\..+")
_MOST_SHARDS = 4096

# Everything of a repository that is ever fetched beside the weights; no code among it.
SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True, kw_only=True)
class HubId:
    """A repository and the revision wanted of it."""

    repository: str
    revision: str

    def __str__(self) -> str:
        return self.repository + ("" if self.revision == "main" else f"@{self.revision}")


def parse_hub_id(text: str) -> HubId | None:
    """`owner/name` or `owner/name@revision`; None for anything else, `..` included."""
    repository, _, revision = text.partition("@")
    revision = revision if "@" in text else "main"
    fits = _REPOSITORY.fullmatch(repository) and _REVISION.fullmatch(revision)
    if not fits or ".." in text or "--" in repository or "//" in text:
        return None
    return HubId(repository=repository, revision=revision)


def hub_cache_root() -> Path:
    """Where huggingface_hub keeps models: HF_HUB_CACHE, else HF_HOME/hub, else ~/.cache/…/hub."""
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if chosen := os.environ.get(variable):
            return _expanded(chosen)
    if home := os.environ.get("HF_HOME"):
        return _expanded(home) / "hub"
    shared = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return _expanded(shared) / "huggingface" / "hub"


def repository_folder(hub_id: HubId) -> Path:
    """The folder of the repository in the cache, whether or not it exists."""
    return hub_cache_root() / f"models--{hub_id.repository.replace('/', '--')}"


def cached_snapshot(hub_id: HubId) -> Path | None:
    """The folder of the wanted revision if its weights and config are here, complete."""
    commit = _commit(hub_id)
    if commit is None:
        return None
    folder = repository_folder(hub_id) / "snapshots" / commit
    return folder if weight_files(present_files(folder)) else None


def present_files(folder: Path) -> list[str]:
    """Names of the files in a snapshot whose contents are there (a link may lead nowhere)."""
    if not folder.is_dir():
        return []
    return sorted(path.name for path in folder.iterdir() if path.is_file())


def weight_files(names: Iterable[str]) -> list[str]:
    """The weights to use of the files in a repository: one kind, complete; else none.

    safetensors before torch's format, one file before shards, and only beside a config.json.
    """
    there = set(names)
    if "config.json" not in there:
        return []
    for stem, suffix in (("model", ".safetensors"), ("pytorch_model", ".bin")):
        if stem + suffix in there:
            return [stem + suffix]
        index = f"{stem}{suffix}.index.json"
        shards = _complete_shards(there, stem=stem, suffix=suffix)
        if index in there and shards:
            return [index, *shards]
    return []


def has_tokenizer(names: Iterable[str]) -> bool:
    """Whether the files include a byte-level BPE tokenizer in either published form."""
    there = set(names)
    return "tokenizer.json" in there or {"vocab.json", "merges.txt"} <= there


def _complete_shards(names: set[str], *, stem: str, suffix: str) -> list[str]:
    shards = [
        match
        for name in sorted(names)
        if (match := _SHARD.fullmatch(name)) and match["stem"] == stem and name.endswith(suffix)
    ]
    for count in sorted({int(match["count"]) for match in shards} & set(range(_MOST_SHARDS + 1))):
        complete = [f"{stem}-{i + 1:05}-of-{count:05}{suffix}" for i in range(count)]
        if complete and names.issuperset(complete):
            return complete
    return []


def _commit(hub_id: HubId) -> str | None:
    if _COMMIT.fullmatch(hub_id.revision):
        return hub_id.revision
    reference = repository_folder(hub_id) / "refs" / hub_id.revision
    try:
        with open(reference, encoding="ascii") as file:
            text = file.read(64).strip()
    except (OSError, ValueError):
        return None
    return text if _COMMIT.fullmatch(text) else None


def _expanded(text: str) -> Path:
    return Path(os.path.abspath(os.path.expanduser(os.path.expandvars(text))))
