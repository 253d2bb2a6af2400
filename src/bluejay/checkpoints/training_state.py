"""Training checkpoints: `save` and `restore`, whole or not at all, and a folder of them.

A checkpoint is a native model folder (any command takes it as a model) with two more files, all
of them sealed by its manifest:

training_state.safetensors   every array of the state but the parameters, by path
training_state.json          what the run wants to remember beside arrays

The manifest is written last and the folder gets its name after it: a folder of that name is whole.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.json_file import read_json_object
from bluejay.checkpoints.native import (
    MANIFEST,
    NativeTensors,
    is_native,
    native_writer,
    read_header,
    seal,
    verify,
    write_config_file,
)
from bluejay.checkpoints.refusal import listed, refusal
from bluejay.checkpoints.run_checkpoints import checkpoints_in
from bluejay.checkpoints.safetensors_file import SafetensorsFile
from bluejay.checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec
from bluejay.core.errors import CheckpointError
from bluejay.core.failpoints import failpoint
from bluejay.core.files import new_folder, write_text_durably
from bluejay.model.config import DecoderConfig
from bluejay.vocab.tokenizer import Tokenizer

Arrays = Mapping[str, NDArray[Any]]

_STEM = "training_state"


@dataclass(frozen=True, kw_only=True)
class TrainedModel:
    """The parameters of a checkpoint by dotted path, unstacked, and what makes them a model."""

    family: str
    config: DecoderConfig
    params: Arrays
    tokenizer: Tokenizer | None


def save(
    destination: Path, model: TrainedModel, state: Arrays, *, document: Mapping[str, Any]
) -> None:
    """Write one checkpoint. Raises DiskError, and then leaves nothing behind."""
    with new_folder(destination) as folder:
        failpoint("save.folder")
        write_config_file(folder, family=model.family, config=model.config)
        if model.tokenizer is not None:
            model.tokenizer.save(folder)
        dtypes = {name: array.dtype for name, array in model.params.items()}
        sums = _write(native_writer(folder, model.config, dtypes), model.params)
        specs = [TensorSpec(name=n, shape=a.shape, dtype=a.dtype) for n, a in state.items()]
        sums |= _write(SafetensorsWriter(folder, specs, stem=_STEM), state)
        write_text_durably(folder / f"{_STEM}.json", json.dumps(document, indent=2) + "\n")
        failpoint("save.manifest")
        seal(folder, known=sums)
        failpoint("save.rename")


def restore(
    folder: Path, *, config: DecoderConfig, expected: Arrays
) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]], dict[str, Any]]:
    """(parameters by path, state by path, document) of a verified checkpoint.

    `expected` are arrays, or shapes and dtypes, of the state. Everything or nothing: raises
    CheckpointError that lists each array which is missing, not expected, or of another shape.
    """
    found = read_header(folder).config
    if found != config:
        raise refusal(folder, "its decoder has another configuration than this run")
    state = _read_state(folder, expected)
    tensors = NativeTensors(folder, config)
    try:
        params = {name: np.array(tensors.read(name)) for name in tensors.tensors}
    finally:
        tensors.close()
    return params, state, read_document(folder)


def read_document(folder: Path) -> dict[str, Any]:
    """What the run remembered beside arrays."""
    return read_json_object(folder / f"{_STEM}.json")


def newest_sound(root: Path, *, on_damage: Callable[[str], None]) -> Path | None:
    """The newest checkpoint that is as its manifest says; None if there never was one.

    A damaged one is set aside under another name, never deleted, and reported in one sentence.
    Raises CheckpointError if all are damaged.
    """
    found = checkpoints_in(root)
    for _, folder in reversed(found):
        problems = _problems(folder)
        if not problems:
            return folder
        aside = _set_aside(folder)
        on_damage(f"{folder} is damaged ({listed(problems)}): it is kept as {aside.name}.")
    if found or any(root.glob("step-*.damaged*")):
        raise CheckpointError(
            f"Every checkpoint in {root} is damaged: nothing was deleted; copy a sound one there, "
            "or begin a new run in another folder."
        )
    return None


def prune(root: Path, *, keep: int) -> None:
    """Delete the oldest checkpoints beyond `keep`, and what killed saves left behind."""
    assert keep >= 1
    for _, folder in checkpoints_in(root)[:-keep]:
        # The manifest first: a half-deleted checkpoint must not look like one.
        with suppress(OSError):
            (folder / MANIFEST).unlink()
        shutil.rmtree(folder, ignore_errors=True)
    for partial in root.glob(".step-*.partial-*"):
        if partial.name.rpartition("-")[2] != str(os.getpid()):
            shutil.rmtree(partial, ignore_errors=True)


def _write(writer: SafetensorsWriter, arrays: Arrays) -> dict[str, str]:
    with writer:
        for number, name in enumerate(writer.order):
            if number == len(writer.order) // 2:
                failpoint("save.file")
            writer.write(name, arrays[name])
    return {file.path.name: file.sha256 for file in writer.written}


def _read_state(folder: Path, expected: Arrays) -> dict[str, NDArray[Any]]:
    file = SafetensorsFile(folder / f"{_STEM}.safetensors")
    try:
        have = file.tensors
        problems = [f"{name} is missing" for name in expected if name not in have]
        problems += [f"{name} is not expected" for name in have if name not in expected]
        problems += list(_mismatches(file, expected))
        if problems:
            raise refusal(folder, listed(problems, most=12))
        return {name: np.array(file.read(name)) for name in expected}
    finally:
        file.close()


def _mismatches(file: SafetensorsFile, expected: Arrays) -> Iterator[str]:
    for name, array in expected.items():
        info = file.tensors.get(name)
        if info is not None and (info.shape, info.dtype) != (array.shape, np.dtype(array.dtype)):
            yield (
                f"{name} should be {np.dtype(array.dtype)} {array.shape}, but is "
                f"{info.dtype} {info.shape}"
            )


def _problems(folder: Path) -> list[str]:
    if not is_native(folder):
        return [f"it has no {MANIFEST}"]
    try:
        return verify(folder)
    except CheckpointError as error:
        return [str(error)]


def _set_aside(folder: Path) -> Path:
    aside = folder.with_name(f"{folder.name}.damaged")
    number = 1
    while aside.exists():
        number += 1
        aside = folder.with_name(f"{folder.name}.damaged-{number}")
    folder.rename(aside)
    return aside
