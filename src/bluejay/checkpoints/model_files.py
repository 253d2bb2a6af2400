"""Open a stored model of any kind: its config, its tensors by native name, its tokenizer."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bluejay.checkpoints.conversion import ConvertedTensors
from bluejay.checkpoints.families import mesh_transformer_config, read_config, read_gguf_config
from bluejay.checkpoints.foreign import describe_foreign
from bluejay.checkpoints.gguf_file import GgufFile
from bluejay.checkpoints.json_file import read_json_object
from bluejay.checkpoints.mesh_transformer import MeshTransformerFolder
from bluejay.checkpoints.model_tensors import ModelTensors
from bluejay.checkpoints.native import NativeTensors, is_native, read_header
from bluejay.checkpoints.opening import open_tensors
from bluejay.checkpoints.refusal import refusal
from bluejay.checkpoints.tables import TABLES
from bluejay.core.errors import CheckpointError
from bluejay.model.config import DecoderConfig
from bluejay.vocab.gguf_vocab import tokenizer_from_gguf
from bluejay.vocab.gpt2 import gptj_tokenizer
from bluejay.vocab.loading import load_tokenizer
from bluejay.vocab.tokenizer import Tokenizer

Format = Literal["native", "hf", "gguf", "mesh-transformer"]
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json")


@dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """An opened model. Tensors carry native names and shapes, and are read one at a time.

    A model is quantized if TensorInfo of any of its tensors names a packing.
    """

    path: Path
    format: Format
    family: str
    config: DecoderConfig
    source: ModelTensors
    load_tokenizer: Callable[[], Tokenizer | None]

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(info.num_bytes for info in self.source.tensors.values())

    @property
    def is_quantized(self) -> bool:
        """Whether some tensors load as packed leaves."""
        return any(info.packing is not None for info in self.source.tensors.values())

    def tokenizer(self) -> Tokenizer | None:
        """The model's tokenizer, or None where no tokenizer files lie with it.

        Raises CheckpointError if it has ids for which the model has no embedding row.
        """
        found = self.load_tokenizer()
        if found is not None and found.vocab_size > self.config.vocab_size:
            raise refusal(
                self.path,
                f"its tokenizer has {found.vocab_size} ids but the model only "
                f"{self.config.vocab_size} embedding rows: the files do not belong together",
            )
        return found

    def close(self) -> None:
        self.source.close()


def open_model(path: Path) -> ModelFiles:
    """Open a native or Hugging Face folder, a GGUF file, or original npz shards.

    Reads headers and configuration, checks every name, shape and dtype, and no tensor. Raises
    CheckpointError in one sentence that names what is wrong and the remedy.
    """
    if not path.exists():
        raise CheckpointError(f"{path} does not exist: give a model's folder, file or name.")
    if path.is_dir():
        return _open_folder(path)
    if path.suffix == ".gguf":
        return _open_gguf(path)
    if path.name == "config.json" or path.suffix in (".safetensors", ".bin"):
        return _open_folder(path.parent)
    raise refusal(path, describe_foreign(path) or "this is not a model file that Bluejay reads")


def _open_folder(folder: Path) -> ModelFiles:
    if is_native(folder):
        return _open_native(folder)
    if _is_mesh_transformer(folder):
        return _open_mesh_transformer(folder)
    if (folder / "config.json").exists():
        return _open_hugging_face(folder)
    found = sorted(folder.glob("*.gguf"))
    if len(found) == 1:
        return _open_gguf(found[0])
    if found:
        names = ", ".join(path.name for path in found)
        raise refusal(folder, f"it holds several models ({names}): name one of the files")
    raise refusal(
        folder,
        describe_foreign(folder)
        or "it holds no model: looked for MANIFEST.json, config.json, *.gguf and shard_0",
    )


def _open_native(folder: Path) -> ModelFiles:
    header = read_header(folder)
    return ModelFiles(
        path=folder,
        format="native",
        family=header.family,
        config=header.config,
        source=NativeTensors(folder, header.config, header.packing),
        load_tokenizer=lambda: _folder_tokenizer(folder),
    )


def _open_hugging_face(folder: Path) -> ModelFiles:
    published = read_json_object(folder / "config.json")
    if published.get("quantization_config"):
        raise refusal(folder, describe_foreign(folder) or "its weights are quantized by others")
    family, config = read_config(published, where=str(folder / "config.json"))
    tensors = open_tensors(folder)
    return ModelFiles(
        path=folder,
        format="hf",
        family=family,
        config=config,
        source=ConvertedTensors(tensors, table=TABLES[family], config=config, where=str(folder)),
        load_tokenizer=lambda: _folder_tokenizer(folder),
    )


def _open_gguf(path: Path) -> ModelFiles:
    file = GgufFile(path)
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise refusal(path, "it has no token_embd.weight matrix: this is not a language model")
    family, config = read_gguf_config(
        file.metadata,
        tied_head="output.weight" not in file.tensors,
        vocab_size=embedding.shape[0],
        where=str(path),
    )
    table = TABLES["gguf-llama"]
    return ModelFiles(
        path=path,
        format="gguf",
        family=family,
        config=config,
        source=ConvertedTensors(file, table=table, config=config, where=str(path)),
        load_tokenizer=lambda: tokenizer_from_gguf(file.metadata),
    )


def _open_mesh_transformer(folder: Path) -> ModelFiles:
    shards = open_tensors(folder)
    assert isinstance(shards, MeshTransformerFolder)
    beside = shards.folder.parent / "config.json", shards.folder / "config.json"
    given = next((path for path in beside if path.is_file()), None)
    if given is not None:
        _, config = read_config(read_json_object(given), where=str(given))
    else:
        shapes = {name: info.shape for name, info in shards.tensors.items()}
        config = mesh_transformer_config(shapes, where=str(folder))
    table = TABLES["mesh-transformer"]
    return ModelFiles(
        path=folder,
        format="mesh-transformer",
        family="gptj",
        config=config,
        source=ConvertedTensors(shards, table=table, config=config, where=str(folder)),
        load_tokenizer=lambda: _gptj_tokenizer(config),
    )


def _gptj_tokenizer(config: DecoderConfig) -> Tokenizer | None:
    """The shards carry no tokenizer; GPT-J's own fits if the vocabulary has its size."""
    tokenizer = gptj_tokenizer()
    return tokenizer if tokenizer.vocab_size == config.vocab_size else None


def _folder_tokenizer(folder: Path) -> Tokenizer | None:
    if not any((folder / name).exists() for name in _TOKENIZER_FILES):
        return None
    return load_tokenizer(folder)


def _is_mesh_transformer(folder: Path) -> bool:
    return (folder / "shard_0").is_dir() or any(folder.glob("step_*/shard_0"))
