"""The native format: a folder of safetensors, config, tokenizer and a manifest that seals them.

model.safetensors   tensors by dotted path, each starting at a multiple of 64 bytes
config.json         format, family and decoder configuration
tokenizer files     as Hugging Face names them; absent for models without text
MANIFEST.json       format version, size and sha256 of every other file; written last
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.json_file import read_json_object
from bluejay.checkpoints.refusal import listed, quoted, refusal
from bluejay.checkpoints.safetensors_file import SafetensorsFile
from bluejay.checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec
from bluejay.checkpoints.shard_index import weights_file
from bluejay.checkpoints.tensor_source import TensorInfo
from bluejay.core.errors import UsageError
from bluejay.core.files import sha256_of, write_text_durably
from bluejay.model.config import DecoderConfig, config_from_json, config_to_json
from bluejay.model.params import named_leaves
from bluejay.model.specs import decoder_specs

FORMAT = "bluejay-checkpoint"
FORMAT_VERSION = 1
MANIFEST = "MANIFEST.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class NativeHeader:
    """What `config.json` of a native folder says."""

    family: str
    config: DecoderConfig


def is_native(folder: Path) -> bool:
    """True if the folder claims to be of this format."""
    return (folder / MANIFEST).is_file()


def read_header(folder: Path) -> NativeHeader:
    """Check manifest and sizes, then read family and config. Raises CheckpointError."""
    problems = [*_manifest_problems(folder, hashes=False)]
    if problems:
        raise refusal(folder, listed(problems))
    path = folder / "config.json"
    document = read_json_object(path)
    family, decoder = document.get("family"), document.get("decoder")
    if not isinstance(family, str) or not isinstance(decoder, dict):
        raise refusal(path, "it lacks the keys 'family' and 'decoder' of a native checkpoint")
    try:
        return NativeHeader(family=family, config=config_from_json(decoder))
    except UsageError as error:
        raise refusal(path, str(error)) from error


def verify(folder: Path) -> list[str]:
    """Every difference between a native folder and its manifest, hashes included."""
    return [*_manifest_problems(folder, hashes=True)]


class NativeTensors:
    """The tensors of a native folder by dotted path, mapped, checked against the config."""

    def __init__(self, folder: Path, config: DecoderConfig) -> None:
        self._file = SafetensorsFile(weights_file(folder, WEIGHTS))
        specs = named_leaves(decoder_specs(config))
        have = self._file.tensors
        problems = [f"{name} is missing" for name in specs if name not in have]
        problems += [f"{quoted(name)} is not expected" for name in have if name not in specs]
        problems += [
            f"{name} should have shape {spec.shape}, but has {have[name].shape}"
            for name, spec in specs.items()
            if name in have and have[name].shape != spec.shape
        ]
        if problems:
            raise refusal(folder, listed(problems, most=12))

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._file.tensors

    def read(self, name: str) -> NDArray[Any]:
        return self._file.read(name)

    def close(self) -> None:
        self._file.close()


def native_writer(
    folder: Path, config: DecoderConfig, dtypes: Mapping[str, np.dtype[Any]]
) -> SafetensorsWriter:
    """A writer of the weights file; `dtypes` are those of the tensors by dotted path."""
    specs = named_leaves(decoder_specs(config))
    tensors = [
        TensorSpec(name=name, shape=spec.shape, dtype=dtypes[name]) for name, spec in specs.items()
    ]
    return SafetensorsWriter(folder, tensors, metadata={"format": "bluejay"})


def write_config_file(folder: Path, *, family: str, config: DecoderConfig) -> None:
    """Write config.json."""
    document = {"format": FORMAT, "family": family, "decoder": config_to_json(config)}
    write_text_durably(folder / "config.json", json.dumps(document, indent=2) + "\n")


def seal(folder: Path, *, known: Mapping[str, str] | None = None) -> None:
    """Write the manifest over all files there; `known` are sha256 sums already computed."""
    sums = known or {}
    files = {
        path.name: {
            "bytes": path.stat().st_size,
            "sha256": sums.get(path.name) or sha256_of(path),
        }
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
    document = {"format": FORMAT, "format_version": FORMAT_VERSION, "files": files}
    write_text_durably(folder / MANIFEST, json.dumps(document, indent=2) + "\n")


def _manifest_problems(folder: Path, *, hashes: bool) -> Iterator[str]:
    manifest = read_json_object(folder / MANIFEST)
    if manifest.get("format") != FORMAT or manifest.get("format_version") != FORMAT_VERSION:
        yield (
            f"its manifest says {quoted(manifest.get('format'))} version "
            f"{quoted(manifest.get('format_version'))}, but only {FORMAT} version "
            f"{FORMAT_VERSION} can be read: convert the model again or update Bluejay"
        )
        return
    files = manifest.get("files")
    entries = files if isinstance(files, dict) else {}
    for needed in (WEIGHTS, "config.json"):
        if needed not in entries:
            yield f"its manifest does not list {needed}"
    for name, entry in entries.items():
        yield from _file_problems(folder, name, entry, hashes=hashes)


def _file_problems(folder: Path, name: str, entry: object, *, hashes: bool) -> Iterator[str]:
    if not isinstance(entry, dict) or Path(name).name != name:
        yield f"its manifest entry {quoted(name)} is not a plain file with bytes and sha256"
        return
    path = folder / name
    if not path.is_file():
        yield f"{name} is missing"
    elif path.stat().st_size != entry.get("bytes"):
        yield (
            f"{name} has {path.stat().st_size} bytes, but its manifest says "
            f"{quoted(entry.get('bytes'))}"
        )
    elif hashes and sha256_of(path) != entry.get("sha256"):
        yield f"{name} is damaged: its sha256 differs from the manifest's"
