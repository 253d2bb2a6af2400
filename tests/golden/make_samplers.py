"""Make `tests/golden/samplers.json`: what llama.cpp's samplers leave of a row of scores.

Run by hand in an environment of its own, never in the package's (README.md beside this file):

    python tests/golden/make_samplers.py SmolLM2-135M-Instruct.Q4_1.gguf

Each case runs a chain of samplers, by the names of llama.cpp's server, over the same 64 candidates
behind a text that repeats itself. Mirostat chooses for itself, so it has a walk of its own: at each
step what it left and what it chose. Takes a second.
"""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path

import llama_cpp
import numpy as np

TEXT = "The sea is blue: the sky is blue and the sea is blue: the sky is"
NUM_CANDIDATES = 64
SEED = 7
DEFAULTS = {
    "temperature": 1.0,
    "dynatemp_range": 0.0,
    "dynatemp_exponent": 1.0,
    "repeat_penalty": 1.0,
    "repeat_last_n": -1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "dry_base": 1.75,
    "dry_allowed_length": 2,
    "dry_penalty_last_n": -1,
    "xtc_probability": 1.0,
}
BREAKERS = ["\n", ":", '"', "*"]
CASES: list[tuple[list[str], dict[str, float]]] = [
    (["dry"], {"dry_multiplier": 0.8}),
    (["dry"], {"dry_multiplier": 2.0, "dry_base": 1.2, "dry_allowed_length": 1}),
    (["dry"], {"dry_multiplier": 0.8, "dry_penalty_last_n": 12}),
    (["xtc"], {"xtc_threshold": 0.1}),
    (["xtc"], {"xtc_threshold": 0.02}),
    (["temperature"], {"temperature": 0.7, "dynatemp_range": 0.5}),
    (["temperature"], {"temperature": 1.5, "dynatemp_range": 1.2, "dynatemp_exponent": 2.5}),
    (["temperature"], {"temperature": 0.6}),
    (["top_n_sigma"], {"top_n_sigma": 1.0}),
    (["typ_p"], {"typical_p": 0.6}),
    (["penalties"], {"repeat_penalty": 1.3, "repeat_last_n": 8}),
    (["penalties"], {"presence_penalty": 0.7, "frequency_penalty": 0.4}),
    (
        ["penalties", "dry", "temperature", "top_k", "top_p", "min_p", "xtc"],
        {
            "repeat_penalty": 1.1,
            "dry_multiplier": 0.8,
            "temperature": 0.9,
            "top_k": 40,
            "top_p": 0.95,
            "min_p": 0.02,
            "xtc_threshold": 0.1,
        },
    ),
    (
        ["dry", "top_k", "typ_p", "top_p", "min_p", "xtc", "temperature"],
        {
            "dry_multiplier": 1.5,
            "top_k": 30,
            "typical_p": 0.9,
            "top_p": 0.9,
            "min_p": 0.05,
            "xtc_threshold": 0.08,
            "temperature": 1.2,
            "dynatemp_range": 0.4,
        },
    ),
]
MIROSTAT = {"mirostat_tau": 3.0, "mirostat_eta": 0.3}
NUM_WALK = 12


def sampler_of(name: str, values: dict[str, float], vocab: object, context: int) -> object:
    """One of llama.cpp's samplers."""
    match name:
        case "dry":
            texts = (ctypes.c_char_p * len(BREAKERS))(*(text.encode() for text in BREAKERS))
            return llama_cpp.llama_sampler_init_dry(
                vocab,
                values["dry_multiplier"],
                values["dry_base"],
                int(values["dry_allowed_length"]),
                context if values["dry_penalty_last_n"] < 0 else int(values["dry_penalty_last_n"]),
                texts,
                len(BREAKERS),
            )
        case "xtc":
            chance, threshold = values["xtc_probability"], values["xtc_threshold"]
            return llama_cpp.llama_sampler_init_xtc(chance, threshold, 1, SEED)
        case "temperature":
            return llama_cpp.llama_sampler_init_temp_ext(
                values["temperature"], values["dynatemp_range"], values["dynatemp_exponent"]
            )
        case "top_n_sigma":
            return llama_cpp.llama_sampler_init_top_n_sigma(values[name])
        case "typ_p":
            return llama_cpp.llama_sampler_init_typical(values["typical_p"], 1)
        case "top_k":
            return llama_cpp.llama_sampler_init_top_k(int(values[name]))
        case "top_p":
            return llama_cpp.llama_sampler_init_top_p(values[name], 1)
        case "min_p":
            return llama_cpp.llama_sampler_init_min_p(values[name], 1)
        case "penalties":
            return llama_cpp.llama_sampler_init_penalties(
                llama_cpp.llama_vocab_n_tokens(vocab),
                context if values["repeat_last_n"] < 0 else int(values["repeat_last_n"]),
                values["repeat_penalty"],
                values["frequency_penalty"],
                values["presence_penalty"],
            )
    raise ValueError(name)


def candidates(ids: np.ndarray, scores: np.ndarray) -> llama_cpp.llama_token_data_array:
    """As llama.cpp has them; what is kept alive is kept on the array."""
    data = (llama_cpp.llama_token_data * len(ids))(
        *(
            llama_cpp.llama_token_data(int(i), float(s), 0.0)
            for i, s in zip(ids, scores, strict=True)
        )
    )
    found = llama_cpp.llama_token_data_array(data, len(ids), -1, False)
    found.kept = data
    return found


def left_of(found: llama_cpp.llama_token_data_array) -> dict[str, list[float]]:
    """The ids that are left, in their order, with their probabilities."""
    pairs = sorted((found.data[i].id, found.data[i].logit) for i in range(found.size))
    scores = np.asarray([score for _, score in pairs], np.float64)
    shares = np.exp(scores - scores.max())
    return {
        "ids": [token for token, _ in pairs],
        "shares": [round(float(share), 8) for share in shares / shares.sum()],
    }


def main() -> None:
    llama_cpp.llama_backend_init()
    params = llama_cpp.llama_model_default_params()
    params.vocab_only = True
    model = llama_cpp.llama_model_load_from_file(sys.argv[1].encode(), params)
    vocab = llama_cpp.llama_model_get_vocab(model)
    buffer = (llama_cpp.llama_token * 256)()
    text = TEXT.encode()
    count = llama_cpp.llama_tokenize(vocab, text, len(text), buffer, 256, False, False)
    history = list(buffer[:count])
    rng = np.random.default_rng(SEED)
    others = rng.choice(np.arange(300, 49000), NUM_CANDIDATES - len({*history}), replace=False)
    ids = np.asarray(sorted({*history, *others.tolist()}))
    scores = np.round(rng.normal(size=len(ids)) * 2, 3)
    scores[rng.choice(len(ids), 3, replace=False)] += 4
    cases = []
    for names, given in CASES:
        found = candidates(ids, scores)
        for name in names:
            sampler = sampler_of(name, DEFAULTS | given, vocab, 4096)
            for token in history:
                llama_cpp.llama_sampler_accept(sampler, token)
            llama_cpp.llama_sampler_apply(sampler, ctypes.byref(found))
            llama_cpp.llama_sampler_free(sampler)
        cases.append({"samplers": names, "values": given, **left_of(found)})
    mirostat = llama_cpp.llama_sampler_init_mirostat_v2(
        SEED, MIROSTAT["mirostat_tau"], MIROSTAT["mirostat_eta"]
    )
    walk = []
    for _ in range(NUM_WALK):
        found = candidates(ids, scores)
        llama_cpp.llama_sampler_apply(mirostat, ctypes.byref(found))
        walk.append({"chosen": found.data[found.selected].id, **left_of(found)})
    stored = {
        "made_with": f"llama-cpp-python {llama_cpp.__version__}",
        "text": TEXT,
        "history": history,
        "ids": ids.tolist(),
        "scores": scores.tolist(),
        "defaults": DEFAULTS,
        "breakers": BREAKERS,
        "cases": cases,
        "mirostat": {"values": MIROSTAT, "walk": walk},
    }
    path = Path(__file__).parent / "samplers.json"
    path.write_text(json.dumps(stored, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
