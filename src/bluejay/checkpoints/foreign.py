"""Files and folders that are weights of another kind, or no weights at all, called by their name.

Whoever points at a wrong file should read what it is and what to do, not "invalid header".
"""

from collections.abc import Mapping
from pathlib import Path

from bluejay.checkpoints.json_file import read_json_object
from bluejay.checkpoints.mapped_file import MappedFile
from bluejay.checkpoints.refusal import quoted, refusal
from bluejay.checkpoints.stored_zip import read_stored_zip
from bluejay.core.errors import CheckpointError

_GET = "get the model as safetensors or GGUF"
_UNPACK = "unpack it and give the folder inside"
_EXPORT = "save it from that library as safetensors first"
_LEVELDB_END = bytes.fromhex("57fb808b247547db")

_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"lmgg", f"a legacy GGML file from before GGUF; {_GET}"),
    (b"fmgg", f"a legacy GGMF file from before GGUF; {_GET}"),
    (b"tjgg", f"a legacy GGJT file from before GGUF; {_GET}"),
    (b"algg", f"a legacy GGLA adapter from before GGUF; {_GET}"),
    (
        b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19",
        f"a PyTorch file from before version 1.6, a pickle that can run code; {_GET}",
    ),
    (b"version https://git-lfs", "a Git LFS pointer, not the weights; run `git lfs pull`"),
    (b"\x89HDF\r\n\x1a\n", f"a Keras or TensorFlow HDF5 file; {_EXPORT}"),
    (b"\x1f\x8b", f"a gzip archive; {_UNPACK}"),
    (b"BZh", f"a bzip2 archive; {_UNPACK}"),
    (b"\xfd7zXZ\x00", f"an xz archive; {_UNPACK}"),
    (b"\x28\xb5\x2f\xfd", f"a Zstandard archive; {_UNPACK}"),
    (b"7z\xbc\xaf\x27\x1c", f"a 7-Zip archive; {_UNPACK}"),
    (b"Rar!\x1a\x07", f"a RAR archive; {_UNPACK}"),
)

_PAGES = (b"<!doctype html", b"<html", b"<head", b'{"error"', b"entry not found", b"access to ")

_SUFFIXES: Mapping[str, str] = {
    ".onnx": f"an ONNX model; {_GET}",
    ".msgpack": f"a Flax msgpack file; {_EXPORT}",
    ".h5": f"a Keras or TensorFlow HDF5 file; {_EXPORT}",
    ".keras": f"a Keras model; {_EXPORT}",
    ".tflite": f"a TensorFlow Lite model; {_GET}",
    ".pb": f"a TensorFlow graph; {_GET}",
}

_FOLDERS: tuple[tuple[str, str], ...] = (
    ("adapter_model.safetensors", "a LoRA adapter, not a model; merge it into its base model"),
    ("adapter_model.bin", "a LoRA adapter, not a model; merge it into its base model"),
    ("tf_model.h5", f"a TensorFlow model; {_GET}"),
    ("saved_model.pb", f"a TensorFlow SavedModel; {_GET}"),
    ("*.ckpt.index", f"a TensorFlow checkpoint; {_GET}"),
    ("model.ckpt*.index", f"a TensorFlow checkpoint; {_GET}"),
    ("flax_model*.msgpack", f"a Flax model; {_EXPORT}"),
    ("openvino_model.xml", f"an OpenVINO model; {_GET}"),
    ("*.onnx", f"an ONNX model; {_GET}"),
    ("_CHECKPOINT_METADATA", f"an Orbax checkpoint; {_EXPORT}"),
    ("consolidated.*.pth", "Llama weights in Meta's layout; get the Hugging Face version"),
    ("mp_rank_*_model_states.pt", f"a DeepSpeed checkpoint; {_EXPORT}"),
    ("params/shard_0.npz", "a checkpoint of the original code's second version, not a GPT-J"),
)

_QUANTIZED_NAMES = {
    ".qweight": "GPTQ or AWQ",
    ".absmax": "bitsandbytes",
    ".weight_packed": "compressed-tensors",
}


def describe_foreign(path: Path) -> str | None:
    """What `path` is and the remedy, if it is known and cannot be read here; else None."""
    try:
        if path.is_dir():
            return _describe_folder(path)
        file = MappedFile(path)
    except (CheckpointError, OSError):
        return "an empty file; download it again" if _is_empty(path) else None
    try:
        return _describe_file(file)
    finally:
        file.close()


def describe_quantized(path: Path) -> str | None:
    """Quantization that lies in the names and shapes of a folder's tensors, so none can be read."""
    method = _quantization_method(path)
    if method is None:
        return None
    return f"weights quantized with {method}; get the unquantized model, or a GGUF file of it"


def quantized_names(names: Mapping[str, object]) -> str | None:
    """The sentence for a source whose tensor names give its quantization away."""
    for suffix, method in _QUANTIZED_NAMES.items():
        name = next((name for name in names if name.endswith(suffix)), None)
        if name is not None:
            return (
                f"weights quantized with {method} (it holds {quoted(name)}); get the unquantized "
                "model, or a GGUF file of it"
            )
    return None


def refuse_foreign(file: MappedFile) -> None:
    """Raise the sentence for a file of a known other kind."""
    description = _describe_file(file)
    if description is not None:
        raise refusal(file.path, f"is {description}")


def _describe_file(file: MappedFile) -> str | None:
    start = file.raw(0, 512)
    for magic, description in _STARTS:
        if start.startswith(magic):
            return description
    if start[257:262] == b"ustar":
        return f"a tar archive; {_UNPACK}"
    if start.lstrip().lower().startswith(_PAGES):
        return "a web page or error message saved in place of the weights; download them again"
    if start.startswith(b"PK"):
        return _describe_zip(file)
    if start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return f"a bare Python pickle, which can run code when it is loaded; {_GET}"
    is_data = ".ckpt" in file.path.suffixes and file.path.suffix.startswith(".data-")
    if is_data or file.raw(max(0, file.size - 8), 8) == _LEVELDB_END:
        return f"a TensorFlow checkpoint; {_GET}"
    if start.startswith(b"<?xml"):
        return f"an XML file, perhaps of an OpenVINO model; {_GET}"
    return _describe_by_suffix(start, file.path)


def _describe_by_suffix(start: bytes, path: Path) -> str | None:
    is_readable = start.startswith(b"GGUF") or start[8:9] == b"{"
    if not is_readable and path.suffix in _SUFFIXES:
        return _SUFFIXES[path.suffix]
    # A msgpack map whose first key is a short string: {"params": ...} or {"transformer": ...}.
    if len(start) > 2 and 0x81 <= start[0] <= 0x8F and 0xA1 <= start[1] <= 0xBF:
        key = start[2 : 2 + (start[1] & 31)]
        return _SUFFIXES[".msgpack"] if key.replace(b"_", b"").isalnum() else None
    # ModelProto: field 1 is ir_version (3 to 15 so far), field 2 the name of the producer.
    is_onnx = start[:1] == b"\x08" and start[2:3] == b"\x12" and start[1] < 32
    return _SUFFIXES[".onnx"] if is_onnx and start[4:8].isalnum() else None


def _describe_zip(file: MappedFile) -> str | None:
    """None for what the torch reader takes, and for damage, which it reports better."""
    # The program's text is compressed, so the entries are looked for in the directory at the end.
    if b"/code/__torch__" in file.raw(max(0, file.size - 65536), 65536):
        return "a TorchScript program, not weights; save its state_dict instead"
    try:
        names = list(read_stored_zip(file))
    except CheckpointError:
        return None
    if any(name.endswith("/data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return f"a NumPy archive, not a folder of shards; {_GET}"
    return "a ZIP file that is not a torch checkpoint; unpack it and give the folder inside"


def _describe_folder(folder: Path) -> str | None:
    quantized = describe_quantized(folder)
    if quantized is not None:
        return quantized
    for pattern, description in _FOLDERS:
        if next(iter(folder.glob(pattern)), None) is not None:
            return description
    return None


def _quantization_method(folder: Path) -> str | None:
    config = _config(folder)
    method = config.get("quantization_config")
    if isinstance(method, dict):
        return quoted(str(method.get("quant_method", "an unnamed method"))).strip("'")
    mlx = config.get("quantization")
    if isinstance(mlx, dict) and "bits" in mlx:
        return "MLX"
    return "GPTQ" if (folder / "quantize_config.json").is_file() else None


def _config(folder: Path) -> dict[str, object]:
    """The folder's config.json if it can be read; whoever needs it reports what is wrong."""
    try:
        return read_json_object(folder / "config.json", max_bytes=2**20)
    except CheckpointError:
        return {}


def _is_empty(path: Path) -> bool:
    try:
        return path.is_file() and path.stat().st_size == 0
    except OSError:
        return False
