"""Make the golden reference data in `tests/golden/transformers` with Hugging Face transformers.

Run by hand in an environment of its own, never in the package's (README.md beside this file):

    python tests/golden/make_transformers.py --vocab FOLDER [--out tests/golden/transformers]

FOLDER holds GPT-2's `encoder.json` and `vocab.bpe`. The run takes about ten seconds on two cores.

Each case is a tiny model of a real transformers class: fp32, eval mode, eager attention, and every
parameter drawn from a seeded normal, so that no bias is zero and no norm scale is one. The values
lie on a coarse grid (sixteenths of a power of two): float16 holds them exactly, and they deflate to
under half their size. Tensors, `config.json` and `generation_config.json` are read back from what
`save_pretrained` wrote, so they are what a user's folder holds.
"""

from __future__ import annotations

import argparse
import copy
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file
from tokenizer_texts import TEXTS

SMALL_VOCABULARY = 96


@dataclass(frozen=True, kw_only=True)
class Case:
    """One tiny model: its transformers class by model type, its config and its number of tokens."""

    name: str
    model_type: str
    num_tokens: int
    config: Mapping[str, object]


_GPTJ = {"vocab_size": SMALL_VOCABULARY, "bos_token_id": 95, "eos_token_id": 95}
_NEOX = {
    "vocab_size": 90,
    "hidden_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 256,
    "rotary_pct": 0.25,
    "max_position_embeddings": 64,
    "hidden_act": "gelu",
    "tie_word_embeddings": False,
}

CASES = (
    Case(
        name="gptj-rotary-64-of-256",
        model_type="gptj",
        num_tokens=40,
        config=_GPTJ
        | {"n_embd": 512, "n_head": 2, "n_layer": 1, "rotary_dim": 64, "n_inner": 96}
        | {"n_positions": 64},
    ),
    Case(
        name="gptj-rotary-32-of-64",
        model_type="gptj",
        num_tokens=40,
        config=_GPTJ
        | {"n_embd": 256, "n_head": 4, "n_layer": 2, "rotary_dim": 32, "n_inner": 64}
        | {"n_positions": 64},
    ),
    Case(
        name="gptj-rotary-full-head",
        model_type="gptj",
        num_tokens=130,
        config=_GPTJ
        | {"n_embd": 48, "n_head": 3, "n_layer": 3, "rotary_dim": 16, "n_positions": 160},
    ),
    Case(
        name="codegen",
        model_type="codegen",
        num_tokens=40,
        config=_GPTJ
        | {"n_embd": 128, "n_head": 8, "n_layer": 2, "rotary_dim": 8, "n_positions": 64}
        | {"n_ctx": 64},
    ),
    Case(
        name="gpt-neox-parallel",
        model_type="gpt_neox",
        num_tokens=40,
        config=_NEOX | {"use_parallel_residual": True},
    ),
    Case(
        name="gpt-neox-sequential",
        model_type="gpt_neox",
        num_tokens=40,
        config=_NEOX | {"use_parallel_residual": False, "layer_norm_eps": 1e-3},
    ),
    Case(
        name="gpt2",
        model_type="gpt2",
        num_tokens=40,
        config={"vocab_size": 90, "n_embd": 96, "n_head": 3, "n_layer": 2, "n_positions": 64}
        | {"bos_token_id": 89, "eos_token_id": 89},
    ),
    Case(
        name="llama-grouped-tied",
        model_type="llama",
        num_tokens=40,
        config={"vocab_size": 90, "hidden_size": 96, "num_attention_heads": 6}
        | {"num_key_value_heads": 2, "num_hidden_layers": 2, "intermediate_size": 160}
        | {"max_position_embeddings": 64, "tie_word_embeddings": True, "rms_norm_eps": 1e-5},
    ),
    Case(
        name="llama-untied-theta-100000",
        model_type="llama",
        num_tokens=64,
        config={"vocab_size": 90, "hidden_size": 64, "num_attention_heads": 4}
        | {"num_key_value_heads": 4, "num_hidden_layers": 2, "intermediate_size": 176}
        | {"max_position_embeddings": 128, "tie_word_embeddings": False, "rms_norm_eps": 1e-3}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 100000.0}},
    ),
)

GENERATION_CASES = ("gptj-rotary-32-of-64", "llama-grouped-tied")
PROMPT_LENGTHS = (1, 2, 7, 23)
NUM_NEW_TOKENS = 24

WARPER_COMBINATIONS: tuple[dict[str, float | int], ...] = (
    {"repetition_penalty": 1.3},
    {"temperature": 0.7},
    {"top_k": 7},
    {"top_p": 0.8},
    {"min_p": 0.1},
    {"typical_p": 0.6},
    {"temperature": 0.7, "top_k": 7},
    {"temperature": 0.7, "top_p": 0.8},
    {"top_k": 7, "top_p": 0.8},
    {"repetition_penalty": 1.3, "temperature": 0.7, "top_k": 7, "top_p": 0.8},
    {"temperature": 1.7, "min_p": 0.1},
    {"temperature": 1.7, "typical_p": 0.6},
    {"repetition_penalty": 1.3, "temperature": 0.7, "top_k": 7, "top_p": 0.8}
    | {"min_p": 0.1, "typical_p": 0.6},
)


def grid_normal(rng: np.random.Generator, shape: tuple[int, ...], scale: float) -> np.ndarray:
    """Normal values rounded to sixteenths of the power of two nearest to `scale`."""
    step = 2.0 ** round(np.log2(scale)) / 16
    return (np.round(rng.standard_normal(shape) * 16) * step).astype(np.float32)


def draw_parameter(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """A value away from every default; matrices keep activations of order one."""
    if len(shape) == 1:
        is_norm_scale = name.endswith("weight")
        return grid_normal(rng, shape, 0.25) + np.float32(is_norm_scale)
    if "wte" in name or "wpe" in name or ("embed" in name and "out" not in name):
        return grid_normal(rng, shape, 0.5 if "wpe" in name else 0.25)
    return grid_normal(rng, shape, 1 / np.sqrt(min(shape)))


def build_model(case: Case, seed: int) -> transformers.PreTrainedModel:
    """The case's model with every parameter replaced by a seeded draw."""
    config = transformers.AutoConfig.for_model(case.model_type, **case.config)
    config._attn_implementation = "eager"
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.float32).eval()
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = draw_parameter(rng, name, tuple(parameter.shape))
            assert np.array_equal(value.astype(np.float16).astype(np.float32), value), name
            parameter.copy_(torch.from_numpy(value))
    return model


def saved_folder(model: transformers.PreTrainedModel) -> dict[str, np.ndarray]:
    """What `save_pretrained` writes: the config texts and the tensors as exact float16."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        arrays = {
            "config": np.array((Path(folder) / "config.json").read_text()),
            "generation_config": np.array((Path(folder) / "generation_config.json").read_text()),
        }
        for name, tensor in load_file(Path(folder) / "model.safetensors").items():
            half = tensor.astype(np.float16)
            assert np.array_equal(half.astype(np.float32), tensor), name
            arrays[f"tensor:{name}"] = half
    return arrays


def versions() -> dict[str, np.ndarray]:
    """The versions that every file carries."""
    return {
        "transformers": np.array(transformers.__version__),
        "torch": np.array(torch.__version__),
    }


def write_case(case: Case, model: transformers.PreTrainedModel, seed: int, out: Path) -> None:
    """One case's file; prints the figures by which a bad draw would show."""
    rng = np.random.default_rng(seed + 1000)
    vocabulary = model.config.vocab_size
    ids = rng.integers(0, vocabulary, (2, case.num_tokens))
    with torch.no_grad():
        result = model(torch.from_numpy(ids), output_attentions=True)
    logits = result.logits.numpy()
    largest_weight = np.mean([a[..., 8:, :].max(-1).values.mean() for a in result.attentions])
    path = out / f"{case.name}.npz"
    np.savez_compressed(
        path, **saved_folder(model), **versions(), input_ids=ids.astype(np.int32), logits=logits
    )
    print(
        f"{case.name:28s} {path.stat().st_size / 1e3:7.0f} kB  logits {logits.shape} "
        f"std {logits.std():.2f} max {np.abs(logits).max():.2f}  "
        f"mean largest attention weight {largest_weight:.2f}"
    )


def greedy_references(model: transformers.PreTrainedModel, name: str) -> dict[str, np.ndarray]:
    """Prompts, what `generate` appends greedily, and the smallest gap between first and second."""
    arrays: dict[str, np.ndarray] = {}
    rng = np.random.default_rng(7)
    smallest_gap = np.inf
    model.generation_config.eos_token_id = None
    for length in PROMPT_LENGTHS:
        prompt = rng.integers(0, model.config.vocab_size, (1, length))
        result = model.generate(
            torch.from_numpy(prompt),
            attention_mask=torch.ones((1, length), dtype=torch.long),
            max_new_tokens=NUM_NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tops = torch.stack(result.logits)[:, 0].topk(2).values
        smallest_gap = min(smallest_gap, (tops[:, 0] - tops[:, 1]).min().item())
        arrays[f"{name}:prompt:{length}"] = prompt[0].astype(np.int32)
        arrays[f"{name}:greedy:{length}"] = result.sequences[0, length:].numpy().astype(np.int32)
    print(f"greedy {name}: smallest gap between first and second logit {smallest_gap:.4f}")
    assert smallest_gap > 1e-3, "a near tie would make the reference depend on rounding"
    return arrays


def write_warpers(model: transformers.PreTrainedModel, out: Path) -> None:
    """Scores after transformers' processors, in the order in which `generate` builds them."""
    rng = np.random.default_rng(11)
    vocabulary, context = 64, 12
    scales = np.array([0.3, 1.0, 2.0, 3.0, 5.0, 8.0])[:, None]
    logits = (rng.standard_normal((6, vocabulary)) * scales).astype(np.float32)
    previous = rng.integers(0, 24, (6, context))
    arrays = {"logits": logits, "previous_ids": previous.astype(np.int32)} | versions()
    parameters, orders = [], []
    for index, combination in enumerate(WARPER_COMBINATIONS):
        config = copy.deepcopy(model.generation_config)
        neutral = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        config.update(**(neutral | combination))
        processors = model._get_logits_processor(
            generation_config=config, input_ids_seq_length=context, device="cpu"
        )
        scores = processors(torch.from_numpy(previous), torch.from_numpy(logits.copy()))
        arrays[f"scores:{index}"] = scores.numpy()
        parameters.append(combination)
        orders.append([type(processor).__name__ for processor in processors])
        print("warpers", combination, orders[-1], np.isfinite(scores.numpy()).sum(1))
    arrays["parameters"] = np.array(json.dumps(parameters))
    arrays["orders"] = np.array(json.dumps(orders))
    np.savez_compressed(out / "logits_processors.npz", **arrays)


def write_tokenizer(vocab: Path, out: Path) -> None:
    """Ids of the texts under GPT-2's tokenizer, built from the original two files."""
    encoder = json.loads((vocab / "encoder.json").read_text())
    lines = (vocab / "vocab.bpe").read_text().split("\n")[1:]
    merges = [tuple(line.split()) for line in lines if line]
    tokenizer = transformers.GPT2Tokenizer(vocab=encoder, merges=merges)
    cases = [
        {"text": text, "ids": tokenizer.encode(text, add_special_tokens=False)} for text in TEXTS
    ]
    for case in cases:
        decoded = tokenizer.decode(case["ids"], clean_up_tokenization_spaces=False)
        assert decoded == case["text"], case
    record = {"transformers": transformers.__version__, "cases": cases}
    path = out / "tokenizers" / "gpt2.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, ensure_ascii=True, indent=0) + "\n")
    print(f"{path.name}: {len(cases)} texts, {sum(len(case['ids']) for case in cases)} ids")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "transformers")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    transformers.utils.logging.disable_progress_bar()
    arguments.out.mkdir(parents=True, exist_ok=True)
    generation: dict[str, np.ndarray] = {}
    for seed, case in enumerate(CASES):
        model = build_model(case, seed)
        write_case(case, model, seed, arguments.out)
        if case.name in GENERATION_CASES:
            generation |= greedy_references(model, case.name)
    np.savez_compressed(arguments.out / "generation.npz", **generation, **versions())
    write_warpers(model, arguments.out)
    write_tokenizer(arguments.vocab, arguments.out)


if __name__ == "__main__":
    main()
