"""A GPT-J folder as an OpenVINO model with its cache inside; run it with optimum-intel's Python.

    FOLDER/venv-openvino/bin/python benchmarks/peers/to_openvino.py MODELS/hf MODELS/openvino-int4 4

Bits: 32 (as stored), 8 (per row), or 4 (symmetric, groups of 128, every layer: no share of the
weights is kept in 8 bits, which the library does on its own for the head and the embedding).
"""

import argparse

from optimum.intel import OVModelForCausalLM, OVWeightQuantizationConfig


def quantization(bits: int) -> OVWeightQuantizationConfig | None:
    if bits == 32:
        return None
    if bits == 8:
        return OVWeightQuantizationConfig(bits=8)
    return OVWeightQuantizationConfig(bits=4, sym=True, group_size=128, ratio=1.0, all_layers=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("source")
    parser.add_argument("destination")
    parser.add_argument("bits", type=int, choices=(32, 8, 4))
    given = parser.parse_args()
    model = OVModelForCausalLM.from_pretrained(
        given.source,
        export=True,
        compile=False,
        load_in_8bit=False,
        quantization_config=quantization(given.bits),
    )
    model.save_pretrained(given.destination)


if __name__ == "__main__":
    main()
