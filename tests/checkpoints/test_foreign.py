"""Files of other kinds are called by their name, with what to do about it."""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from bluejay.checkpoints.foreign import describe_foreign
from bluejay.checkpoints.opening import open_tensors
from checkpoints.refusals import refused

GOLDEN = Path(__file__).parents[1] / "golden" / "torch"


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.safetensors"))
    return buffer.getvalue()


def zip_of(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, b"x")
    return buffer.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
FILES = {
    "ggml-model.bin": (b"lmgg" + bytes(60), "legacy GGML file"),
    "ggmf.bin": (b"fmgg\x01\0\0\0" + bytes(60), "legacy GGMF file"),
    "ggjt.bin": (b"tjgg\x03\0\0\0" + bytes(60), "legacy GGJT file"),
    "lora.bin": (b"algg\x01\0\0\0" + bytes(60), "legacy GGLA adapter"),
    "pointer.safetensors": (LFS, "Git LFS pointer"),
    "page.safetensors": (b"\n<!DOCTYPE html><html>Sign in</html>", "web page"),
    "page.bin": (b"<html><head><title>404</title>", "web page"),
    "error.gguf": (b'{"error":"Repository not found"}', "error message"),
    "missing.bin": (b"Entry not found", "error message"),
    "keras.h5": (b"\x89HDF\r\n\x1a\n" + bytes(60), "HDF5"),
    "model.tar": (tar(), "tar archive"),
    "model.tar.gz": (gzip.compress(tar()), "gzip archive"),
    "model.bz2": (bz2.compress(tar()), "bzip2 archive"),
    "model.tar.xz": (lzma.compress(tar()), "xz archive"),
    "slim.tar.zstd": (b"\x28\xb5\x2f\xfd" + bytes(60), "Zstandard archive"),
    "model.7z": (b"7z\xbc\xaf\x27\x1c" + bytes(60), "7-Zip archive"),
    "flax_model.msgpack": (b"\x82\xabtransformer\x83\xa2wte", "Flax msgpack"),
    "params.bin": (b"\x81\xa6params\x81", "Flax msgpack"),
    "model.onnx": (b"\x08\x07\x12\x07pytorch\x1a\x05", "ONNX"),
    "onnx.bin": (b"\x08\x07\x12\x07pytorch\x1a\x05", "ONNX"),
    "openvino_model.xml": (b'<?xml version="1.0"?>\n<net name="m">', "OpenVINO"),
    "model.ckpt.data-00000-of-00001": (bytes(100), "TensorFlow checkpoint"),
    "model.ckpt.index": (bytes(92) + bytes.fromhex("57fb808b247547db"), "TensorFlow checkpoint"),
    "pickle.bin": (b"\x80\x04\x95\x10\0\0\0\0\0\0\0", "bare Python pickle"),
    "files.bin": (zip_of("config.json"), "not a torch checkpoint"),
    "arrays.npz": (zip_of("arr_0.npy"), "NumPy archive"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_called_by_their_name(tmp_path: Path, name: str) -> None:
    content, reason = FILES[name]
    path = tmp_path / name
    path.write_bytes(content)
    description = describe_foreign(path)
    assert description is not None
    assert reason in description
    sentence = refused(open_tensors, path)
    assert reason in sentence or "torch checkpoint" in sentence


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_pointer_or_page_in_a_folder_is_called_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(LFS)
    assert "run `git lfs pull`" in refused(open_tensors, tmp_path)
    (tmp_path / name).write_bytes(b"<!doctype html>")
    assert "download them again" in refused(open_tensors, tmp_path)


def test_empty_files(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert describe_foreign(tmp_path / "model.safetensors") == "an empty file; download it again"
    assert "empty" in refused(open_tensors, tmp_path)


FOLDERS = {
    "adapter_model.safetensors": "LoRA adapter",
    "tf_model.h5": "TensorFlow model",
    "saved_model.pb": "SavedModel",
    "model.ckpt-1000.index": "TensorFlow checkpoint",
    "flax_model.msgpack": "Flax model",
    "openvino_model.xml": "OpenVINO",
    "decoder.onnx": "ONNX",
    "_CHECKPOINT_METADATA": "Orbax",
    "consolidated.00.pth": "Meta's layout",
    "mp_rank_00_model_states.pt": "DeepSpeed",
    "params/shard_0.npz": "second version",
}


@pytest.mark.parametrize("name", FOLDERS)
def test_folders_are_called_by_their_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "config.json").write_text('{"model_type": "gptj"}')
    assert FOLDERS[name] in str(describe_foreign(tmp_path))
    assert FOLDERS[name] in refused(open_tensors, tmp_path)


CONFIGS = {
    "gptq": {"quantization_config": {"quant_method": "gptq", "bits": 4}},
    "awq": {"quantization_config": {"quant_method": "awq"}},
    "fp8": {"quantization_config": {"quant_method": "fp8"}},
    "an unnamed method": {"quantization_config": {}},
    "MLX": {"quantization": {"group_size": 64, "bits": 4}},
}


@pytest.mark.parametrize("method", CONFIGS)
def test_quantized_folders_are_refused_by_their_config(tmp_path: Path, method: str) -> None:
    safetensors.numpy.save_file({"w": np.zeros(2)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(CONFIGS[method]))
    assert f"quantized with {method}; get the unquantized" in refused(open_tensors, tmp_path)


def test_quantized_weights_are_refused_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "gptq_model-4bit.safetensors"
    safetensors.numpy.save_file({"h.0.attn.q_proj.qweight": np.zeros(2, np.int32)}, path)
    assert "GPTQ or AWQ (it holds 'h.0.attn.q_proj.qweight')" in refused(open_tensors, path)
    (tmp_path / "quantize_config.json").write_text('{"bits": 4}')
    assert "quantized with GPTQ" in refused(open_tensors, tmp_path)


def test_readable_and_unknown_files_are_not_foreign(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"w": np.zeros(2)}, path)
    (tmp_path / "config.json").write_text("{not json")
    assert describe_foreign(path) is None
    assert describe_foreign(tmp_path) is None
    assert describe_foreign(GOLDEN / "weights.bin") is None
    assert describe_foreign(tmp_path / "not there") is None
    assert describe_foreign(Path("/dev/zero")) is None
    assert len(open_tensors(tmp_path).tensors) == 1


def test_what_was_looked_for_is_listed(tmp_path: Path) -> None:
    sentence = refused(open_tensors, tmp_path)
    for name in ("model.safetensors", "pytorch_model.bin.index.json", "*.gguf", "step_N"):
        assert name in sentence
    (tmp_path / "notes.txt").write_text("nothing of interest")
    assert "is no weights file" in refused(open_tensors, tmp_path / "notes.txt")
