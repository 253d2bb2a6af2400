"""Reads the golden reference data in `tests/golden` (made there by hand; see its README.md)."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parent / "golden"

CASES: tuple[str, ...] = (
    "gptj-rotary-64-of-256",
    "gptj-rotary-32-of-64",
    "gptj-rotary-full-head",
    "codegen",
    "gpt-neox-parallel",
    "gpt-neox-sequential",
    "gpt2",
    "llama-grouped-tied",
    "llama-untied-theta-100000",
)


@dataclass(frozen=True, kw_only=True)
class GoldenCase:
    """A tiny model as transformers saved it, and its fp32 logits for two rows of ids.

    `config_text` is the `config.json` that transformers 5 wrote; `older_config_text` is the same
    config as transformers 4 wrote it, which is how most published folders look.
    """

    name: str
    config_text: str
    older_config_text: str
    generation_config_text: str
    tensors: dict[str, NDArray[np.float32]]
    input_ids: NDArray[np.int32]  # [2, T]
    logits: NDArray[np.float32]  # [2, T, V]

    @property
    def config(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.config_text)
        return loaded

    @property
    def older_config(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.older_config_text)
        return loaded


def load_case(name: str) -> GoldenCase:
    """The case of that name, its tensors (stored as exact float16) widened to float32."""
    older = json.loads((GOLDEN / "transformers" / "older_configs.json").read_text())
    with np.load(GOLDEN / "transformers" / f"{name}.npz", allow_pickle=False) as stored:
        return GoldenCase(
            name=name,
            config_text=str(stored["config"]),
            older_config_text=older["configs"][name],
            generation_config_text=str(stored["generation_config"]),
            tensors={
                key.removeprefix("tensor:"): stored[key].astype(np.float32)
                for key in stored.files
                if key.startswith("tensor:")
            },
            input_ids=stored["input_ids"],
            logits=stored["logits"],
        )


def write_hf_folder(case: GoldenCase, folder: Path, *, older_config: bool = False) -> Path:
    """Write the folder that `save_pretrained` wrote for this case; returns `folder`.

    `older_config` writes the `config.json` of transformers 4 in place of that of transformers 5.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config_text = case.older_config_text if older_config else case.config_text
    (folder / "config.json").write_text(config_text)
    (folder / "generation_config.json").write_text(case.generation_config_text)
    save_file(case.tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@dataclass(frozen=True, kw_only=True)
class GreedyReference:
    """A prompt and the ids that transformers' `generate` appended to it greedily."""

    prompt: NDArray[np.int32]  # [P]
    continuation: NDArray[np.int32]  # [24]


def load_greedy_references(name: str) -> list[GreedyReference]:
    """The greedy references of a case: `gptj-rotary-32-of-64` or `llama-grouped-tied`."""
    with np.load(GOLDEN / "transformers" / "generation.npz", allow_pickle=False) as stored:
        lengths = [
            key.rpartition(":")[2] for key in stored.files if key.startswith(f"{name}:prompt:")
        ]
        return [
            GreedyReference(
                prompt=stored[f"{name}:prompt:{length}"],
                continuation=stored[f"{name}:greedy:{length}"],
            )
            for length in lengths
        ]


@dataclass(frozen=True, kw_only=True)
class WarperReference:
    """Scores after transformers' logits processors with these parameters, built by `generate`.

    `parameters` holds only what was set (`repetition_penalty`, `temperature`, `top_k`, `top_p`,
    `min_p`, `typical_p`); removed scores are -inf.
    """

    parameters: dict[str, float]
    order: list[str]
    logits: NDArray[np.float32]  # [6, 64]
    previous_ids: NDArray[np.int32]  # [6, 12]
    scores: NDArray[np.float32]  # [6, 64]


def load_warper_references() -> list[WarperReference]:
    """Every combination of parameters in `logits_processors.npz`."""
    path = GOLDEN / "transformers" / "logits_processors.npz"
    with np.load(path, allow_pickle=False) as stored:
        parameters = json.loads(str(stored["parameters"]))
        orders = json.loads(str(stored["orders"]))
        return [
            WarperReference(
                parameters=parameters[index],
                order=orders[index],
                logits=stored["logits"],
                previous_ids=stored["previous_ids"],
                scores=stored[f"scores:{index}"],
            )
            for index in range(len(parameters))
        ]


def load_gpt2_token_ids() -> list[tuple[str, list[int]]]:
    """Texts with their ids under GPT-2's tokenizer."""
    record = json.loads((GOLDEN / "transformers" / "tokenizers" / "gpt2.json").read_text())
    return [(case["text"], case["ids"]) for case in record["cases"]]


@dataclass(frozen=True, kw_only=True)
class WindowReference:
    """What an engine says about the SmolLM2 window; position i predicts `input_ids[i + 1]`.

    `full_*` and `probe_*` are empty in llama.cpp's file.
    """

    engine: str
    input_ids: NDArray[np.int32]  # [1001], token 0 first
    top_ids: NDArray[np.int32]  # [1000, 8], best first
    top_logits: NDArray[np.float32]  # [1000, 8]
    log_sum_exp: NDArray[np.float32]  # [1000]
    next_logits: NDArray[np.float32]  # [1000], of the id that follows
    full_positions: NDArray[np.int32]  # [5]
    full_logits: NDArray[np.float32]  # [5, 49152]
    probe_ids: NDArray[np.int32]  # [49]
    probe_logits: NDArray[np.float32]  # [1000, 49]


def load_window_reference(engine: str) -> WindowReference:
    """The reference of `transformers` (fp32 on dequantized tensors) or `llama_cpp`."""
    empty = {
        "full_positions": np.zeros(0, np.int32),
        "full_logits": np.zeros((0, 49152), np.float32),
        "probe_ids": np.zeros(0, np.int32),
        "probe_logits": np.zeros((1000, 0), np.float32),
    }
    with np.load(GOLDEN / "smollm2" / f"{engine}.npz", allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files if name != "versions"}
    return WindowReference(**(empty | arrays | {"engine": str(arrays["engine"])}))


def load_passage() -> str:
    """The SmolLM2 window's text: 1,000 ids, without the token 0 before them."""
    return (GOLDEN / "smollm2" / "passage.txt").read_text(encoding="utf-8")


def load_smollm2_token_ids() -> list[tuple[str, list[int]]]:
    """Texts with their ids under llama.cpp's tokenizer, names of special tokens read as text."""
    record = json.loads((GOLDEN / "smollm2" / "token_ids.json").read_text())
    return [(case["text"], case["ids"]) for case in record["cases"]]


@dataclass(frozen=True, kw_only=True)
class GradientReference:
    """transformers' mean next-token loss of a case's two rows, and its fp32 gradients by the
    published names of the tensors."""

    case: str
    loss: float
    gradients: dict[str, NDArray[np.float32]]


def load_gradient_reference() -> GradientReference:
    """The one case that has gradients: `gptj-rotary-full-head`."""
    path = GOLDEN / "transformers" / "gradients.npz"
    with np.load(path, allow_pickle=False) as stored:
        return GradientReference(
            case=str(stored["case"]),
            loss=float(stored["loss"]),
            gradients={
                key.removeprefix("gradient:"): stored[key]
                for key in stored.files
                if key.startswith("gradient:")
            },
        )
