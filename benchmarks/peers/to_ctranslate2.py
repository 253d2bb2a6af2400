"""A GPT-J folder as a CTranslate2 model; run it with the peers' Python.

FOLDER/venv/bin/python benchmarks/peers/to_ctranslate2.py MODELS/hf MODELS/ctranslate2-int8 int8
"""

import argparse
from pathlib import Path

import torch
import transformers
from ctranslate2.converters.transformers import GPTJLoader

QUANTIZATIONS = ("float32", "int8", "int8_float32")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source")
    parser.add_argument("destination")
    parser.add_argument("quantization", choices=QUANTIZATIONS)
    given = parser.parse_args()
    model = transformers.GPTJForCausalLM.from_pretrained(given.source, dtype=torch.float32)
    with torch.no_grad():  # the loader permutes rotary rows in place
        spec = GPTJLoader().get_model_spec(model)
    # A random model has no tokenizer, and the converter's own entry point asks for one.
    spec.register_vocabulary([f"<{number}>" for number in range(model.config.vocab_size)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "<0>"
    spec.validate()
    kept = None if given.quantization == "float32" else given.quantization
    spec.optimize(quantization=kept)
    Path(given.destination).mkdir(parents=True)
    spec.save(given.destination)


if __name__ == "__main__":
    main()
