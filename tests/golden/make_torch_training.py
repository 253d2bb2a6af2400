"""Make more of `tests/golden/torch`: what training scripts leave behind, as `torch.save` wrote it.

Run by hand in the golden environment (README.md beside this file):

    python tests/golden/make_torch_training.py

`training.pt` keeps the weights under "model" beside optimizer and step; `protocol_4.pt` uses the
newer pickle and dtypes that have no storage class of their own; `torchscript.pt` is a program and
`quantized.pt` holds a quantized tensor: those two are for a reader to refuse.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "torch")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    model = torch.nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(torch.arange(6.0).view(2, 3))
        model.bias.copy_(torch.tensor([-1.0, 1.0]))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    # A learning rate of 0 gives the optimizer its moments and leaves the weights as they are.
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    training = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 1}
    torch.save(training, out / "training.pt")
    newer = {
        "uint16": torch.tensor([0, 1, 65535], dtype=torch.uint16),
        "float8": torch.tensor([1.0, -448.0]).to(torch.float8_e4m3fn),
        "bfloat16": torch.tensor([1.0, -3.0]).bfloat16(),
        "size": torch.Size([2, 3]),
    }
    torch.save(newer, out / "protocol_4.pt", pickle_protocol=4)
    torch.jit.script(model).save(out / "torchscript.pt")
    quantized = torch.quantize_per_tensor(torch.ones(4), 0.1, 0, torch.qint8)
    torch.save({"w": quantized}, out / "quantized.pt")


if __name__ == "__main__":
    main()
