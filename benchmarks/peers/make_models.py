"""Random GPT-J models in the engines' own forms.

    python benchmarks/peers/make_models.py FOLDER [--shape 305m|6b] [--layers N]
                                           [--forms hf,F16,Q8_0,Q4_0] [--dtype float32]

`hf` is a folder that Bluejay and transformers read, and what to_ctranslate2.py and to_openvino.py
convert. The others are GGUF files for llama.cpp, which has no graph of GPT-J's own name: its phi-2
graph computes the same block, with halves in place of interleaved pairs in the rotary part, so the
rows of query and key are permuted and the two models are one function. Bluejay reads no GGUF of
that architecture; its side is `bluejay quantize` of the folder.

Everything is written tensor by tensor. At width 4096 and above, blocks of Q4_0 and Q8_0 are drawn
and not computed from values, which would take a quarter of an hour.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from shapes import SHAPES, SPREAD, Shape, values

from bluejay.checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec

KINDS = {name: gguf.GGMLQuantizationType[name] for name in ("F32", "F16", "Q8_0", "Q4_0")}
FILE_TYPES = {"F16": 1, "Q8_0": 7, "Q4_0": 2}
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
GGUF_NAMES = {
    "ln_1": "attn_norm",
    "attn.q_proj": "attn_q",
    "attn.k_proj": "attn_k",
    "attn.v_proj": "attn_v",
    "attn.out_proj": "attn_output",
    "mlp.fc_in": "ffn_up",
    "mlp.fc_out": "ffn_down",
    "transformer.wte": "token_embd",
    "transformer.ln_f": "output_norm",
    "lm_head": "output",
}
WIDER = ("transformer.wte.weight", "lm_head.weight")
# Elements per block, bytes per block, and the scale that gives uniform codes the spread of values.
BLOCK = 32
LAST_CODES = {"Q4_0": 15, "Q8_0": 255}
DRAWN_FROM_WIDTH = 4096


def write_folder(folder: Path, shape: Shape, dtype: str) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.config(dtype), indent=1))
    kind = DTYPES[dtype]
    specs = [TensorSpec(name=n, shape=s, dtype=kind) for n, s in shape.tensors()]
    shapes = dict(shape.tensors())
    metadata = {"format": "pt"}  # what transformers asks for
    with SafetensorsWriter(folder, specs, metadata=metadata, max_shard_bytes=5 * 10**9) as writer:
        for name in writer.order:
            writer.write(name, values(name, shapes[name]).astype(kind))


def gguf_name(name: str) -> str:
    stem, _, part = name.rpartition(".")
    if stem.startswith("transformer.h."):
        layer, _, inner = stem.removeprefix("transformer.h.").partition(".")
        return f"blk.{layer}.{GGUF_NAMES[inner]}.{part}"
    return f"{GGUF_NAMES[stem]}.{part}"


def halves(weight: NDArray[np.float32], shape: Shape) -> NDArray[np.float32]:
    """Rows of each head reordered: pairs (0, 1), (2, 3) become (0, r/2), (1, r/2 + 1)."""
    order = np.arange(shape.head)
    half = shape.rotary // 2
    order[:half] = np.arange(0, shape.rotary, 2)
    order[half : shape.rotary] = np.arange(1, shape.rotary, 2)
    by_head = weight.reshape(shape.heads, shape.head, -1)[:, order]
    return np.ascontiguousarray(by_head.reshape(weight.shape))


def drawn_blocks(kind: str, rows: int, columns: int, seed: int) -> NDArray[np.uint8]:
    """Blocks of random codes. The signs of the scales alternate: codes are not centred."""
    random = np.random.default_rng(seed)
    size = gguf.GGML_QUANT_SIZES[KINDS[kind]][1]
    count = rows * columns // BLOCK
    blocks = np.frombuffer(random.bytes(count * size), np.uint8).reshape(count, size).copy()
    scale = np.float16(SPREAD / (LAST_CODES[kind] / 12**0.5))
    scales = np.where(np.arange(count) % 2, -scale, scale).astype(np.float16)
    blocks[:, :2] = scales[:, None].view(np.uint8)
    return blocks.reshape(rows, -1)


def gguf_tensors(kind: str, shape: Shape) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """(HF name, kind, shape) in file order; phi-2 has one bias that GPT-J lacks.

    Beside weights of 4 bits, embedding and head take 8, as in what `bluejay quantize` writes.
    """
    for name, size in shape.tensors():
        own = kind if len(size) == 2 else "F32"
        yield name, "Q8_0" if own == "Q4_0" and name in WIDER else own, size
        if name.endswith("attn.out_proj.weight"):
            yield name.replace("weight", "bias"), "F32", size[:1]


def stored(name: str, kind: str, size: tuple[int, ...], shape: Shape) -> NDArray[np.generic]:
    if name.endswith("out_proj.bias"):
        return np.zeros(size, np.float32)
    if kind in LAST_CODES and shape.width >= DRAWN_FROM_WIDTH:
        return drawn_blocks(kind, *size, seed=len(name) + size[0])
    weight = values(name, size)
    if "q_proj" in name or "k_proj" in name:
        weight = halves(weight, shape)
    return gguf.quants.quantize(weight, KINDS[kind])


def num_bytes(kind: str, size: tuple[int, ...]) -> int:
    per_block, block_bytes = gguf.GGML_QUANT_SIZES[KINDS[kind]]
    return int(np.prod(size)) // per_block * block_bytes


def add_metadata(writer: gguf.GGUFWriter, kind: str, shape: Shape) -> None:
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.feed_forward)
    writer.add_block_count(shape.layers)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.heads)
    writer.add_layer_norm_eps(1e-5)
    writer.add_rope_dimension_count(shape.rotary)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_tokenizer_model("no_vocab")
    writer.add_vocab_size(shape.vocabulary)


def write_gguf(path: Path, shape: Shape, kind: str) -> None:
    unfinished = path.with_suffix(".unfinished")
    writer = gguf.GGUFWriter(unfinished, "phi2")
    add_metadata(writer, kind, shape)
    tensors = list(gguf_tensors(kind, shape))
    for name, own, size in tensors:
        elements = np.dtype(np.float16 if own == "F16" else np.float32)
        bytes_per_row = num_bytes(own, size[-1:])
        stored_shape = (*size[:-1], bytes_per_row) if own in LAST_CODES else size
        dtype = np.dtype(np.uint8) if own in LAST_CODES else elements
        writer.add_tensor_info(
            gguf_name(name), stored_shape, dtype, num_bytes(own, size), raw_dtype=KINDS[own]
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, own, size in tensors:
        writer.write_tensor_data(stored(name, own, size, shape))
    writer.close()
    unfinished.rename(path)


def estimated_bytes(form: str, shape: Shape, dtype: str) -> int:
    weights = sum(int(np.prod(size)) for _, size in shape.tensors())
    bits = {"F16": 16.0, "Q8_0": 8.5, "Q4_0": 4.5, "hf": 8.0 * DTYPES[dtype].itemsize}
    return int(weights * bits[form] / 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="305m")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--forms", default="hf,F16,Q8_0,Q4_0")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    given = parser.parse_args()
    shape = SHAPES[given.shape].with_layers(given.layers)
    given.folder.mkdir(parents=True, exist_ok=True)
    for form in given.forms.split(","):
        path = given.folder / ("hf" if form == "hf" else f"{form}.gguf")
        needed, free = estimated_bytes(form, shape, given.dtype), shutil.disk_usage(given.folder)
        if path.exists():
            print(f"{path} is there already.")
            continue
        if needed > 0.9 * free.free:
            raise SystemExit(f"{path} needs {needed / 1e9:.1f} GB; {free.free / 1e9:.1f} are free.")
        if form == "hf":
            write_folder(path, shape, given.dtype)
        else:
            write_gguf(path, shape, form)
        print(f"{path}: {needed / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
