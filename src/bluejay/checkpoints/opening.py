"""Open any readable weights by what they contain, whatever they are called."""

import os
from pathlib import Path

from bluejay.checkpoints.foreign import describe_foreign, describe_quantized, quantized_names
from bluejay.checkpoints.gguf_file import GgufFile
from bluejay.checkpoints.mapped_file import MappedFile
from bluejay.checkpoints.mesh_transformer import MeshTransformerFolder
from bluejay.checkpoints.refusal import listed, refusal
from bluejay.checkpoints.safetensors_file import SafetensorsFile, open_safetensors_folder
from bluejay.checkpoints.shard_index import open_shards
from bluejay.checkpoints.tensor_source import TensorSource
from bluejay.checkpoints.torch_zip import TorchZipFile, open_torch_folder

_LOOKED_FOR = (
    "model.safetensors, model.safetensors.index.json, pytorch_model.bin, "
    "pytorch_model.bin.index.json, one *.gguf, shard_0 or step_N"
)


def open_tensors(path: Path) -> TensorSource:
    """The weights at `path`: a folder, a weights file, or the index of shards.

    In a folder safetensors win over torch files, those over shards of the original code, and
    those over a GGUF file. Everything else is a CheckpointError that says what was looked for.
    """
    source = _open_folder(path) if os.path.isdir(path) else _open_file(path)
    quantized = quantized_names(source.tensors)
    if quantized is not None:
        source.close()
        raise refusal(path, f"holds {quantized}")
    return source


def _open_folder(folder: Path) -> TensorSource:
    quantized = describe_quantized(folder)
    if quantized is not None:
        raise refusal(folder, f"holds {quantized}")
    if _has(folder, "model.safetensors", "model.safetensors.index.json"):
        return open_safetensors_folder(folder)
    if _has(folder, "pytorch_model.bin", "pytorch_model.bin.index.json"):
        return open_torch_folder(folder)
    if _has(folder, "shard_0"):
        return MeshTransformerFolder(folder)
    steps = sorted(path for path in folder.glob("step_*") if path.name[5:].isdecimal())
    if steps:
        return MeshTransformerFolder(_the_only(steps, folder))
    files = sorted(folder.glob("*.gguf"))
    if files:
        return _open_file(_the_only(files, folder))
    foreign = describe_foreign(folder)
    raise refusal(folder, f"holds {foreign}" if foreign else f"there is none of {_LOOKED_FOR}")


def _open_file(path: Path) -> TensorSource:
    if path.name.endswith(".safetensors.index.json"):
        return open_shards(path, SafetensorsFile, suffix=".safetensors")
    if path.name.endswith(".bin.index.json"):
        return open_shards(path, TorchZipFile, suffix=".bin")
    file = MappedFile(path)
    try:
        start = file.raw(0, 9)
    finally:
        file.close()
    if start.startswith(b"GGUF"):
        return GgufFile(path)
    if start.startswith(b"PK\x03\x04"):
        return TorchZipFile(path)
    if start[8:] == b"{" or path.suffix == ".safetensors":
        return SafetensorsFile(path)
    foreign = describe_foreign(path)
    if foreign is not None:
        raise refusal(path, f"is {foreign}")
    raise refusal(path, "is no weights file that can be read: safetensors, torch (.bin), GGUF")


def _has(folder: Path, *names: str) -> bool:
    return any(os.path.lexists(folder / name) for name in names)


def _the_only(paths: list[Path], folder: Path) -> Path:
    if len(paths) > 1:
        names = listed([path.name for path in paths])
        raise refusal(folder, f"there are several models ({names}); give the path of one of them")
    return paths[0]
