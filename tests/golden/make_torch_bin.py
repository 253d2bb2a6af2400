"""Make `tests/golden/torch`: files that `torch.save` really wrote, and what they hold.

Run by hand in the golden environment (README.md beside this file):

    python tests/golden/make_torch_bin.py

`weights.bin` holds every shape of entry that state dicts have been found to carry; `expected.npz`
holds its values (bfloat16 widened to float32). `legacy.bin` is the format before torch 1.6, and
`module.bin` a whole pickled module: both are for a reader to refuse.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch


def state_dict() -> OrderedDict[str, torch.Tensor]:
    """Dtypes, views and ties: what a reader of storages, offsets and strides can get wrong."""
    torch.manual_seed(0)
    base = torch.randn(6, 8)
    flat = torch.randn(40)
    return OrderedDict(
        {
            "float32": base,
            "tied": base,
            "transposed": base.t(),
            "rows_2_to_5": base[2:5],
            "every_second_column": base[:, ::2],
            "offset_view": flat[7:31].view(4, 6),
            "expanded": torch.randn(1, 5).expand(3, 5),
            "float16": torch.randn(3, 4).half(),
            "bfloat16": torch.randn(3, 4).bfloat16(),
            "bfloat16_transposed": torch.randn(3, 4).bfloat16().t(),
            "float64": torch.randn(5).double(),
            "int64": torch.arange(-3, 4),
            "uint8": torch.arange(250, 256, dtype=torch.uint8),
            "bool": torch.tensor([True, False, True]),
            "scalar": torch.tensor(-1e9),
            "empty": torch.empty(0, 4),
            "parameter": torch.nn.Parameter(torch.randn(2, 3)),
        }
    )


def as_numpy(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's values, bfloat16 as float32."""
    plain = tensor.detach()
    return (plain.float() if plain.dtype == torch.bfloat16 else plain).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "torch")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    tensors = state_dict()
    torch.save(tensors, out / "weights.bin")
    small = {"weight": tensors["float32"]}
    torch.save(small, out / "legacy.bin", _use_new_zipfile_serialization=False)
    torch.save(torch.nn.Linear(2, 2), out / "module.bin")
    arrays = {name: as_numpy(tensor) for name, tensor in tensors.items()}
    np.savez_compressed(out / "expected.npz", torch=np.array(torch.__version__), **arrays)
    for path in sorted(out.iterdir()):
        print(f"{path.name}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
