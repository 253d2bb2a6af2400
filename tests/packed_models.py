"""A small Llama decoder as a GGUF file of random blocks, written by the published package."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from bluejay.vocab.byte_alphabet import BYTE_CHARACTERS

WIDTH, HEADS, KV_HEADS, HEAD, WIDE, VOCAB, LAYERS = 64, 4, 2, 16, 96, 264, 2
# A vocabulary whose rows do not fill groups of 16, and each kind of blocks that is packed.
MATRICES = {
    "attn_q": (HEADS * HEAD, WIDTH, "Q4_0"),
    "attn_k": (KV_HEADS * HEAD, WIDTH, "Q8_0"),
    "attn_v": (KV_HEADS * HEAD, WIDTH, "Q4_1"),
    "attn_output": (WIDTH, HEADS * HEAD, "Q4_1"),
    "ffn_gate": (WIDE, WIDTH, "Q4_0"),
    "ffn_up": (WIDE, WIDTH, "Q5_0"),
    "ffn_down": (WIDTH, WIDE, "Q4_1"),
}


def random_blocks(kind: str, outputs: int, inputs: int, *, seed: int) -> NDArray[np.uint8]:
    """Rows of blocks in which every byte is random, but scales are finite and moderate."""
    elements, size = GGML_QUANT_SIZES[GGMLQuantizationType[kind]]
    rows = np.random.default_rng(seed).integers(0, 256, (outputs, inputs // elements * size))
    blocks = rows.astype(np.uint8).reshape(outputs, -1, size)
    for high in (1, 3) if kind == "Q4_1" else (1,):
        blocks[:, :, high] = blocks[:, :, high] & 0x87 | 0x18
    return blocks.reshape(outputs, -1)


def write_llama_gguf(
    path: Path, *, embedding: str = "Q8_0", head: str | None = None
) -> dict[str, NDArray[Any]]:
    """Write the file; gives the published dequantization of every tensor by its name."""
    values: dict[str, NDArray[Any]] = {}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(WIDE)
    writer.add_context_length(128)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["<|endoftext|>", *BYTE_CHARACTERS, "Ġt"])
    writer.add_token_types([3, *[1] * 257])
    writer.add_token_merges(["Ġ t"])
    writer.add_eos_token_id(0)

    def add(name: str, outputs: int, inputs: int, kind: str) -> None:
        rows = random_blocks(kind, outputs, inputs, seed=len(values))
        writer.add_tensor(name, rows, raw_dtype=GGMLQuantizationType[kind])
        values[name] = gguf.quants.dequantize(rows, GGMLQuantizationType[kind])

    add("token_embd.weight", VOCAB, WIDTH, embedding)
    if head is not None:
        add("output.weight", VOCAB, WIDTH, head)
    norms = ["output_norm", *(f"blk.{i}.{n}_norm" for i in range(LAYERS) for n in ("attn", "ffn"))]
    for name in norms:
        values[f"{name}.weight"] = np.linspace(0.5, 1.5, WIDTH, dtype=np.float32)
        writer.add_tensor(f"{name}.weight", values[f"{name}.weight"])
    for layer in range(LAYERS):
        for name, (outputs, inputs, kind) in MATRICES.items():
            add(f"blk.{layer}.{name}.weight", outputs, inputs, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return values


def unpermuted(rows: NDArray[Any]) -> NDArray[Any]:
    """llama.cpp's order of q and k rows undone (convert_hf_to_gguf.py, LlamaModel.permute)."""
    split = rows.reshape(-1, HEAD // 2, 2, rows.shape[-1])
    return split.swapaxes(1, 2).reshape(rows.shape)
