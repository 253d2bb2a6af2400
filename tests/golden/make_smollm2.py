"""Make the golden reference data in `tests/golden/smollm2`: one GGUF file run by two other engines.

Run by hand in an environment of its own, never in the package's (README.md beside this file):

    python tests/golden/make_smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf [--chapter chapter-5.xhtml]

The window is 1,001 ids: token 0, as the model's training documents begin, then 1,000 ids of the
passage; each of the first 1,000 positions predicts the id that follows it. transformers runs in
fp32 on the tensors that the `gguf` package dequantizes; llama.cpp runs the file as it is, with its
own int8 activations. `--chapter` makes `passage.txt` anew from a Standard Ebooks chapter.
Takes about two minutes and 4 GB of memory on two cores.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import gguf
import llama_cpp
import numpy as np
import tokenizers
import torch
import transformers
from tokenizer_texts import SPECIAL_TEXTS, TEXTS

NUM_POSITIONS = 1000
NUM_TOP = 8
FULL_POSITIONS = (0, 1, 63, 500, 999)
PROBE_STRIDE = 1021  # 49 ids spread over the vocabulary, read at every position
DOCUMENT_START = 0


@dataclass(frozen=True, kw_only=True)
class Engine:
    """What one engine says about the window."""

    name: str
    logits: np.ndarray  # [NUM_POSITIONS, V] float32
    seconds: float


def read_field(reader: gguf.GGUFReader, key: str) -> object:
    """A metadata value as Python sees it."""
    field = reader.get_field(key)
    assert field is not None, key
    return field.contents()


def build_tokenizer(reader: gguf.GGUFReader) -> tokenizers.Tokenizer:
    """The file's byte-level BPE: its `smollm` pre-tokenizer splits single digits, then as GPT-2."""
    assert read_field(reader, "tokenizer.ggml.pre") == "smollm"
    tokens = read_field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in read_field(reader, "tokenizer.ggml.merges")]
    model = tokenizers.models.BPE(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges
    )
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    return tokenizer


def write_passage(chapter: Path, tokenizer: tokenizers.Tokenizer, path: Path) -> None:
    """The chapter's paragraphs, cut after exactly NUM_POSITIONS ids."""
    root = ElementTree.parse(chapter).getroot()
    paragraphs = [
        re.sub(r"\s+", " ", "".join(element.itertext())).strip()
        for element in root.iter("{http://www.w3.org/1999/xhtml}p")
    ]
    text = "\n\n".join(paragraphs).replace("\u2060", "").replace("\u200a", "")
    text = tokenizer.decode(tokenizer.encode(text).ids[:NUM_POSITIONS])
    assert len(tokenizer.encode(text).ids) == NUM_POSITIONS
    path.write_text(text, encoding="utf-8")


def hugging_face_name(name: str) -> str:
    """The Llama tensor name of transformers for a GGUF tensor name."""
    whole = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }
    if name in whole:
        return whole[name]
    parts = {
        "attn_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    _, layer, part, suffix = name.split(".")
    return f"model.layers.{layer}.{parts[part]}.{suffix}"


def half_split_rows(weight: np.ndarray, num_heads: int) -> np.ndarray:
    """Rotary pairs from adjacent rows, as GGUF has them, to the two halves of each head."""
    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def build_model(reader: gguf.GGUFReader) -> transformers.LlamaForCausalLM:
    """The file's model in fp32."""
    settings = {
        "hidden_size": "llama.embedding_length",
        "intermediate_size": "llama.feed_forward_length",
        "num_hidden_layers": "llama.block_count",
        "num_attention_heads": "llama.attention.head_count",
        "num_key_value_heads": "llama.attention.head_count_kv",
        "max_position_embeddings": "llama.context_length",
        "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
        "vocab_size": "llama.vocab_size",
    }
    config = transformers.LlamaConfig(
        **{name: read_field(reader, key) for name, key in settings.items()},
        rope_parameters={
            "rope_type": "default",
            "rope_theta": read_field(reader, "llama.rope.freq_base"),
        },
        tie_word_embeddings=True,
    )
    config._attn_implementation = "eager"
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors = {}
    for tensor in reader.tensors:
        weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        for part, num_heads in heads.items():
            if f".{part}." in tensor.name:
                weight = half_split_rows(weight, num_heads)
        tensors[hugging_face_name(tensor.name)] = torch.from_numpy(np.array(weight))
    model = transformers.LlamaForCausalLM(config).to(torch.float32).eval()
    loaded = model.load_state_dict(tensors, strict=False)
    assert not loaded.unexpected_keys, loaded
    assert set(loaded.missing_keys) <= {"lm_head.weight"}, loaded
    model.tie_weights()
    return model


def run_transformers(reader: gguf.GGUFReader, ids: np.ndarray) -> Engine:
    """transformers in fp32 over the window in one pass."""
    model = build_model(reader)
    window = torch.from_numpy(ids[None, :NUM_POSITIONS].astype(np.int64))
    start = time.perf_counter()
    with torch.no_grad():
        logits = model(window).logits[0].numpy()
    name = f"transformers {transformers.__version__}, fp32"
    return Engine(name=name, logits=logits, seconds=time.perf_counter() - start)


def run_llama_cpp(model: llama_cpp.Llama, ids: np.ndarray) -> Engine:
    """llama.cpp over the window, with its own defaults."""
    start = time.perf_counter()
    model.eval(ids[:NUM_POSITIONS].tolist())
    seconds = time.perf_counter() - start
    name = f"llama.cpp of llama-cpp-python {llama_cpp.__version__}"
    return Engine(name=name, logits=model.scores[:NUM_POSITIONS].copy(), seconds=seconds)


def log_sum_exp(logits: np.ndarray) -> np.ndarray:
    """Over the vocabulary, in float64."""
    top = logits.max(1).astype(np.float64)
    shifted = np.exp(logits - top[:, None].astype(np.float32), dtype=np.float32)
    return top + np.log(shifted.sum(1, dtype=np.float64))


def mean_kl(reference: np.ndarray, other: np.ndarray) -> float:
    """Mean over positions of KL(reference || other), in nats; row by row to save memory."""
    total = 0.0
    for first, second in zip(reference, other, strict=True):
        p = first - log_sum_exp(first[None])
        q = second - log_sum_exp(second[None])
        total += float((np.exp(p) * (p - q)).sum())
    return total / len(reference)


def write_reference(
    engine: Engine, ids: np.ndarray, path: Path, *, versions: dict[str, str], with_logits: bool
) -> None:
    """The compact form: top ids, normalizer, true id's logit, and samples of the logits."""
    logits = engine.logits
    top = np.argsort(-logits, axis=1, kind="stable")[:, :NUM_TOP]
    probes = np.arange(0, logits.shape[1], PROBE_STRIDE)
    arrays = {
        "input_ids": ids.astype(np.int32),
        "top_ids": top.astype(np.int32),
        "top_logits": np.take_along_axis(logits, top, 1),
        "log_sum_exp": log_sum_exp(logits).astype(np.float32),
        "next_logits": logits[np.arange(NUM_POSITIONS), ids[1:]],
        "engine": np.array(engine.name),
        "versions": np.array(json.dumps(versions)),
    }
    if with_logits:
        positions = np.array(FULL_POSITIONS)
        arrays |= {"full_positions": positions.astype(np.int32), "full_logits": logits[positions]}
        arrays |= {"probe_ids": probes.astype(np.int32), "probe_logits": logits[:, probes]}
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")


def print_comparison(reference: Engine, other: Engine, ids: np.ndarray) -> None:
    """The table of README.md."""
    rows = np.arange(NUM_POSITIONS)
    for engine in (reference, other):
        losses = log_sum_exp(engine.logits) - engine.logits[rows, ids[1:]]
        print(
            f"{engine.name:45s} mean loss {losses.mean():.5f} nats, "
            f"{NUM_POSITIONS / engine.seconds:.0f} tokens/s"
        )
    agreement = (reference.logits.argmax(1) == other.logits.argmax(1)).mean()
    difference = np.abs(reference.logits - other.logits)
    print(f"top-1 agreement {agreement:.1%}")
    print(f"mean KL {mean_kl(reference.logits, other.logits):.2e} nats")
    print(f"logit difference: mean {difference.mean():.3f}, largest {difference.max():.3f}")
    print(f"logits: std {reference.logits.std():.2f}, max {np.abs(reference.logits).max():.2f}")


def write_token_ids(
    model: llama_cpp.Llama, tokenizer: tokenizers.Tokenizer, passage: str, path: Path
) -> None:
    """Ids of the texts from llama.cpp, special tokens not parsed; prints disagreements."""
    cases = []
    for text in (*TEXTS, *SPECIAL_TEXTS, passage):
        ids = model.tokenize(text.encode(), add_bos=False, special=False)
        other = tokenizer.encode(text, add_special_tokens=False).ids
        if ids != other:
            print(f"llama.cpp and tokenizers differ on {text[:60]!r}: {ids[:20]} {other[:20]}")
        cases.append({"text": text, "ids": ids, "tokenizers_agrees": ids == other})
    record = {"llama_cpp_python": llama_cpp.__version__, "cases": cases[:-1]}
    path.write_text(json.dumps(record, indent=0) + "\n")
    agreeing = sum(case["tokenizers_agrees"] for case in cases)
    print(f"{path.name}: tokenizers agrees on {agreeing} of {len(cases)} texts, passage included")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--chapter", type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "smollm2")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(2)
    versions = {
        "gguf file sha256": hashlib.sha256(arguments.gguf.read_bytes()).hexdigest(),
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "llama-cpp-python": llama_cpp.__version__,
        "llama.cpp": llama_cpp.llama_print_system_info().decode(),
    }
    reader = gguf.GGUFReader(arguments.gguf)
    tokenizer = build_tokenizer(reader)
    if arguments.chapter:
        write_passage(arguments.chapter, tokenizer, arguments.out / "passage.txt")
    passage = (arguments.out / "passage.txt").read_text(encoding="utf-8")
    ids = np.array([DOCUMENT_START, *tokenizer.encode(passage).ids])
    assert ids.shape == (NUM_POSITIONS + 1,)
    model = llama_cpp.Llama(
        str(arguments.gguf),
        n_ctx=2048,
        n_threads=2,
        n_threads_batch=2,
        logits_all=True,
        verbose=False,
    )
    write_token_ids(model, tokenizer, passage, arguments.out / "token_ids.json")
    reference, other = run_transformers(reader, ids), run_llama_cpp(model, ids)
    print_comparison(reference, other, ids)
    for engine, name in ((reference, "transformers"), (other, "llama_cpp")):
        write_reference(
            engine,
            ids,
            arguments.out / f"{name}.npz",
            versions=versions,
            with_logits=engine is reference,
        )


if __name__ == "__main__":
    main()
