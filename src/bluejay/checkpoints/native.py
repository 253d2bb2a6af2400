"""The native format: a folder of safetensors, config, tokenizer and a manifest that seals them.

model.safetensors   tensors by dotted path, each starting at a multiple of 64 bytes; a packed one
                    is PATH.codes, PATH.scales and perhaps PATH.offsets, as the kernels read them
config.json         format, family and decoder configuration, and which tensors are packed, and how
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
from bluejay.checkpoints.packing import PART_DTYPES, Packing, require_finite
from bluejay.checkpoints.packing_json import packing_document, read_packing
from bluejay.checkpoints.refusal import listed, quoted, refusal
from bluejay.checkpoints.safetensors_file import SafetensorsFile
from bluejay.checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec
from bluejay.checkpoints.shard_index import weights_file
from bluejay.checkpoints.tensor_source import TensorInfo
from bluejay.core.errors import UsageError
from bluejay.core.files import sha256_of, write_text_durably
from bluejay.model.config import DecoderConfig, config_from_json, config_to_json
from bluejay.model.params import named_leaves
from bluejay.model.specs import ParamSpec, decoder_specs
from bluejay.nn.quantized import QuantizedWeight, dequantize

FORMAT = "bluejay-checkpoint"
FORMAT_VERSION = 1
PACKED_VERSION = 2
"""Of folders with packed tensors, so that readers which know none refuse them by their version."""
MANIFEST = "MANIFEST.json"
WEIGHTS = "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class NativeHeader:
    """What `config.json` of a native folder says; `packing` is that of the packed tensors."""

    family: str
    config: DecoderConfig
    packing: Mapping[str, Packing]


def is_native(folder: Path) -> bool:
    """True if the folder claims to be of this format."""
    return (folder / MANIFEST).is_file()


def read_header(folder: Path) -> NativeHeader:
    """Check manifest and sizes, then read family and config. Raises CheckpointError."""
    manifest = read_json_object(folder / MANIFEST)
    problems = [*_manifest_problems(folder, manifest, hashes=False)]
    if problems:
        raise refusal(folder, listed(problems))
    path = folder / "config.json"
    document = read_json_object(path)
    family, decoder = document.get("family"), document.get("decoder")
    if not isinstance(family, str) or not isinstance(decoder, dict):
        raise refusal(path, "it lacks the keys 'family' and 'decoder' of a native checkpoint")
    try:
        config = config_from_json(decoder)
    except UsageError as error:
        raise refusal(path, str(error)) from error
    packing = read_packing(document.get("packing"), config, path=path)
    is_packed = manifest["format_version"] == PACKED_VERSION
    if is_packed != bool(packing):
        raise refusal(
            path,
            f"it describes {len(packing)} packed tensors, but the manifest is of format version "
            f"{PACKED_VERSION if is_packed else FORMAT_VERSION}: quantize the model again",
        )
    return NativeHeader(family=family, config=config, packing=packing)


def verify(folder: Path) -> list[str]:
    """Every difference between a native folder and its manifest, hashes included."""
    return [*_manifest_problems(folder, read_json_object(folder / MANIFEST), hashes=True)]


class NativeTensors:
    """The tensors of a native folder by dotted path, mapped, checked against the config."""

    def __init__(
        self, folder: Path, config: DecoderConfig, packing: Mapping[str, Packing] | None = None
    ) -> None:
        self._folder, self._packing = folder, packing or {}
        self._specs = named_leaves(decoder_specs(config))
        self._file = SafetensorsFile(weights_file(folder, WEIGHTS))
        want = _stored_shapes(self._specs, self._packing)
        have = self._file.tensors
        problems = [f"{name} is missing" for name in want if name not in have]
        problems += [f"{quoted(name)} is not expected" for name in have if name not in want]
        for name, (shape, dtype) in want.items():
            if name in have and have[name].shape != shape:
                problems.append(f"{name} should have shape {shape}, but has {have[name].shape}")
            elif name in have and dtype not in (None, have[name].dtype):
                problems.append(f"{name} should hold {dtype}, but holds {have[name].stored}")
        if problems:
            self._file.close()
            raise refusal(folder, listed(problems, most=12))

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return {
            name: TensorInfo(
                name=name,
                shape=spec.shape,
                dtype=np.dtype(np.float32),
                stored=self._packing[name].name,
                num_bytes=self._packing[name].num_bytes(spec),
                packing=self._packing[name].name,
            )
            if name in self._packing
            else self._file.tensors[name]
            for name, spec in self._specs.items()
        }

    def read(self, name: str) -> NDArray[Any]:
        if name in self._packing:
            values: NDArray[np.float32] = dequantize(self.read_packed(name))
            return values
        return self._file.read(name)

    def read_packed(self, name: str) -> QuantizedWeight:
        """A leaf whose arrays are views of the mapped file."""
        packing, spec = self._packing[name], self._specs[name]
        parts = {part: self._file.read(f"{name}.{part}") for part in packing.shapes(spec)}
        require_finite(parts, name, where=str(self._folder))
        return packing.leaf(parts, spec)

    def close(self) -> None:
        self._file.close()


def _stored_shapes(
    specs: Mapping[str, ParamSpec], packing: Mapping[str, Packing]
) -> dict[str, tuple[tuple[int, ...], np.dtype[Any] | None]]:
    """Shape of every tensor of the file, and its dtype where only one is right."""
    found: dict[str, tuple[tuple[int, ...], np.dtype[Any] | None]] = {}
    for name, spec in specs.items():
        if name not in packing:
            found[name] = (spec.shape, None)
            continue
        for part, shape in packing[name].shapes(spec).items():
            found[f"{name}.{part}"] = (shape, PART_DTYPES[part])
    return found


def native_writer(
    folder: Path,
    config: DecoderConfig,
    dtypes: Mapping[str, np.dtype[Any]],
    packing: Mapping[str, Packing] | None = None,
) -> SafetensorsWriter:
    """A writer of the weights file; `dtypes` are those of the tensors by dotted path, of which
    packed ones need none: their parts are written as PATH.codes and so on."""
    specs = named_leaves(decoder_specs(config))
    tensors = [
        TensorSpec(name=name, shape=shape, dtype=dtype or dtypes[name])
        for name, (shape, dtype) in _stored_shapes(specs, packing or {}).items()
    ]
    return SafetensorsWriter(folder, tensors, metadata={"format": "bluejay"})


def write_config_file(
    folder: Path,
    *,
    family: str,
    config: DecoderConfig,
    packing: Mapping[str, Packing] | None = None,
) -> None:
    """Write config.json."""
    document = {"format": FORMAT, "family": family, "decoder": config_to_json(config)}
    if packing:
        document["packing"] = packing_document(packing)
    write_text_durably(folder / "config.json", json.dumps(document, indent=2) + "\n")


def seal(folder: Path, *, known: Mapping[str, str] | None = None) -> None:
    """Write the manifest over all files there; `known` are sha256 sums already computed.

    Its format version is that of packed tensors if config.json describes any.
    """
    is_packed = "packing" in read_json_object(folder / "config.json")
    sums = known or {}
    files = {
        path.name: {
            "bytes": path.stat().st_size,
            "sha256": sums.get(path.name) or sha256_of(path),
        }
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
    version = PACKED_VERSION if is_packed else FORMAT_VERSION
    document = {"format": FORMAT, "format_version": version, "files": files}
    write_text_durably(folder / MANIFEST, json.dumps(document, indent=2) + "\n")


def _manifest_problems(folder: Path, manifest: Mapping[str, Any], *, hashes: bool) -> Iterator[str]:
    version = manifest.get("format_version")
    known = type(version) is int and version in (FORMAT_VERSION, PACKED_VERSION)
    if manifest.get("format") != FORMAT or not known:
        yield (
            f"its manifest says {quoted(manifest.get('format'))} version {quoted(version)}, but "
            f"only {FORMAT} versions {FORMAT_VERSION} and {PACKED_VERSION} can be read: convert "
            "the model again or update Bluejay"
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
