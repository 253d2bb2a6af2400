"""Write the golden cases' configs as transformers 4 writes them, and check the references with it.

Published folders mostly carry a `config.json` of transformers 4, which names some things otherwise
than transformers 5 (`rope_theta` and `rotary_pct` where that writes `rope_parameters`). Run by hand
after `make_transformers.py`, with transformers 4 before the golden environment's own:

    pip install --target OLDER --no-deps transformers==4.57.1 'huggingface-hub<1' tokenizers==0.22.1
    PYTHONPATH=OLDER python tests/golden/make_older_configs.py --vocab FOLDER

It fails when a logit differs by more than 1e-5 from the stored one, or when transformers 4's pure
Python GPT-2 tokenizer gives other ids than those stored.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import transformers
from make_transformers import CASES, Case
from transformers.models.gpt2.tokenization_gpt2 import GPT2Tokenizer

LARGEST_DIFFERENCE = 1e-5


def older_config(case: Case) -> transformers.PretrainedConfig:
    """The case's config, with rotary settings where transformers 4 expects them."""
    settings = dict(case.config)
    rope = settings.pop("rope_parameters", None)
    if isinstance(rope, dict):
        settings["rope_theta"] = rope["rope_theta"]
    config = transformers.AutoConfig.for_model(case.model_type, **settings)
    config._attn_implementation = "eager"
    return config


def largest_difference(case: Case, config: transformers.PretrainedConfig, folder: Path) -> float:
    """Between transformers 4's logits on the stored tensors and the stored logits."""
    with np.load(folder / f"{case.name}.npz", allow_pickle=False) as stored:
        tensors = {
            key.removeprefix("tensor:"): torch.from_numpy(stored[key].astype(np.float32))
            for key in stored.files
            if key.startswith("tensor:")
        }
        ids, logits = stored["input_ids"].astype(np.int64), stored["logits"]
    model = transformers.AutoModelForCausalLM.from_config(config).to(torch.float32).eval()
    missing = model.load_state_dict(tensors, strict=False)
    model.tie_weights()
    assert not missing.unexpected_keys, missing
    assert set(missing.missing_keys) <= {"lm_head.weight"}, missing
    with torch.no_grad():
        return float(np.abs(model(torch.from_numpy(ids)).logits.numpy() - logits).max())


def check_tokenizer(vocab: Path, folder: Path) -> None:
    """The pure Python tokenizer must give the stored ids."""
    tokenizer = GPT2Tokenizer(str(vocab / "encoder.json"), str(vocab / "vocab.bpe"))
    record = json.loads((folder / "tokenizers" / "gpt2.json").read_text())
    for case in record["cases"]:
        assert tokenizer.encode(case["text"]) == case["ids"], case
    print(f"pure Python GPT-2 tokenizer: the same ids for all {len(record['cases'])} texts")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--vocab", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "transformers")
    arguments = parser.parse_args()
    assert transformers.__version__.startswith("4."), transformers.__version__
    configs = {}
    for case in CASES:
        config = older_config(case)
        difference = largest_difference(case, config, arguments.out)
        print(f"{case.name:28s} largest logit difference {difference:.2e}")
        assert difference <= LARGEST_DIFFERENCE, case.name
        model_class = type(transformers.AutoModelForCausalLM.from_config(config))
        config.architectures = [model_class.__name__]
        config.torch_dtype = torch.float32
        configs[case.name] = config.to_json_string(use_diff=True)
    record = {"transformers": transformers.__version__, "configs": configs}
    path = arguments.out / "older_configs.json"
    path.write_text(json.dumps(record, indent=0) + "\n")
    check_tokenizer(arguments.vocab, arguments.out)


if __name__ == "__main__":
    main()
