"""Checkpoints in several files: `*.index.json` says which shard holds which tensor.

Loaders of 2026 followed `../` and absolute names in `weight_map` out of the model's folder, so
a shard's name must be a plain file name here, and the file must lie in the folder itself.
"""

import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from numpy.typing import NDArray

from bluejay.checkpoints.json_file import read_json_object
from bluejay.checkpoints.refusal import has_control_characters, listed, quoted, refusal
from bluejay.checkpoints.tensor_source import TensorInfo, TensorSource

MAX_SHARDS = 4096


class ShardedTensors:
    """Several TensorSources with distinct tensor names, seen as one."""

    def __init__(self, sources: Mapping[str, TensorSource]) -> None:
        self._sources = dict(sources)
        self._owners = {name: s for s in self._sources.values() for name in s.tensors}
        self._tensors = {name: owner.tensors[name] for name, owner in self._owners.items()}

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._tensors)

    def read(self, name: str) -> NDArray[Any]:
        # A name that no shard has is answered by the first one, which refuses it in its own words.
        return self._owners.get(name, next(iter(self._sources.values()))).read(name)

    def close(self) -> None:
        for source in self._sources.values():
            source.close()


def open_shards(
    index: Path, open_one: Callable[[Path], TensorSource], *, suffix: str
) -> ShardedTensors:
    """All shards that `index` names, opened and compared with it; every problem in one error."""
    weight_map = _read_weight_map(index)
    problems, paths = _locate_shards(weight_map, index, suffix)
    if problems:
        raise refusal(index, f"{listed(problems)}")
    sources: dict[str, TensorSource] = {}
    try:
        for name, path in paths.items():
            sources[name] = open_one(path)
        problems = _differences(weight_map, sources)
        if problems:
            raise refusal(index, f"it does not match its shards: {listed(problems)}")
    except BaseException:
        for source in sources.values():
            source.close()
        raise
    return ShardedTensors(sources)


def weights_file(folder: Path, name: str) -> Path:
    """The file called `name` in `folder`, which must be a regular file there, not a link out.

    One kind of link is followed: a snapshot of the Hugging Face cache holds links to `blobs` of
    the same repository (`models--owner--name/snapshots/REVISION/x -> ../../blobs/HASH`). The
    target must lie directly in that `blobs` folder, so a link planted elsewhere stays refused.
    """
    path = folder / name
    try:
        mode = path.lstat().st_mode
    except OSError as error:
        raise refusal(path, f"cannot be opened ({error.strerror})") from error
    if stat.S_ISREG(mode):
        return path
    if not stat.S_ISLNK(mode):
        raise refusal(path, "is not a regular file")
    blobs = _hub_blobs(folder)
    target = _resolved(path)
    if blobs is None or target.parent != blobs:
        raise refusal(path, "is a link that leads out of the model's folder; copy the file there")
    if not target.is_file():
        raise refusal(path, "is a link to a file that is missing; download the model again")
    return target


def _hub_blobs(folder: Path) -> Path | None:
    """The `blobs` folder beside the snapshot that `folder` is, if it is one."""
    resolved = _resolved(folder)
    repository = resolved.parent.parent
    is_snapshot = resolved.parent.name == "snapshots" and repository.name.startswith("models--")
    return repository / "blobs" if is_snapshot else None


def _resolved(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise refusal(path, "is a link that leads in a circle") from error


def _read_weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json_object(weights_file(index.parent, index.name)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise refusal(index, "it has no weight_map of tensor names to file names")
    wrong = [quoted(name) for name, shard in weight_map.items() if not isinstance(shard, str)]
    if wrong:
        raise refusal(index, f"the weight_map gives no file name for {listed(wrong)}")
    return weight_map


def _locate_shards(
    weight_map: Mapping[str, str], index: Path, suffix: str
) -> tuple[list[str], dict[str, Path]]:
    problems: list[str] = []
    paths: dict[str, Path] = {}
    shards = sorted(set(weight_map.values()))
    if len(shards) > MAX_SHARDS:
        return [f"{len(shards):,} shards, more than the {MAX_SHARDS:,} allowed"], paths
    for shard in shards:
        if not _is_plain_name(shard) or not shard.endswith(suffix):
            problems.append(f"the shard name {quoted(shard)} is not a plain *{suffix} file name")
            continue
        try:
            paths[shard] = weights_file(index.parent, shard)
        except Exception as error:  # collected: all problems are reported together
            problems.append(str(error))
    return problems, paths


def _is_plain_name(name: str) -> bool:
    # Backslash and colon separate paths on Windows, where the same index must stay harmless.
    return not (set(name) & set("/\\:") or has_control_characters(name) or name in ("", ".", ".."))


def _differences(weight_map: Mapping[str, str], sources: Mapping[str, TensorSource]) -> list[str]:
    """Where the index and the shards disagree, in words."""
    problems = [
        f"{quoted(name)} is not in {shard}"
        for name, shard in weight_map.items()
        if name not in sources[shard].tensors
    ]
    for shard, source in sources.items():
        for name in source.tensors:
            listed_in = weight_map.get(name)
            if listed_in is None:
                problems.append(f"{quoted(name)} in {shard} is not listed")
            elif listed_in != shard:
                problems.append(f"{quoted(name)} is in {shard}, listed for {listed_in}")
    return problems
