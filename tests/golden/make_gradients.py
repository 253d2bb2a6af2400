"""Make `tests/golden/transformers/gradients.npz`: a loss and its gradients from transformers.

Run by hand in the golden environment (README.md beside this file), after `make_transformers.py`:

    python tests/golden/make_gradients.py

The model, its tensors and its ids are those of the case `gptj-rotary-full-head`. The loss is
transformers' own: mean cross-entropy of the next token over all targets of both rows, fp32, eager
attention, no dropout. `gradient:<name>` is its gradient (float32) by the tensor's published name.
The run also prints how far the same pass in double precision lies from it, which is as close as
any fp32 implementation can be asked to come.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import transformers

CASE = "gptj-rotary-full-head"


def load_model(stored: np.lib.npyio.NpzFile) -> transformers.GPTJForCausalLM:
    """The case's model with the tensors of its file, in eval mode."""
    config = transformers.GPTJConfig.from_dict(json.loads(str(stored["config"])))
    config._attn_implementation = "eager"
    model = transformers.GPTJForCausalLM(config).to(torch.float32).eval()
    tensors = {
        key.removeprefix("tensor:"): torch.from_numpy(stored[key].astype(np.float32))
        for key in stored.files
        if key.startswith("tensor:")
    }
    model.load_state_dict(tensors, strict=True)
    return model


def loss_and_gradients(
    model: transformers.GPTJForCausalLM, ids: np.ndarray
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """The mean loss over all T - 1 targets of every row, and its gradient by parameter name."""
    labels = torch.from_numpy(ids.astype(np.int64))
    model.zero_grad(set_to_none=True)
    # transformers shifts the labels itself.
    loss = model(labels, labels=labels).loss
    loss.backward()
    gradients = {name: p.grad.numpy().copy() for name, p in model.named_parameters()}
    return loss.detach().numpy(), gradients


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent / "transformers")
    folder = parser.parse_args().folder
    torch.set_num_threads(1)
    with np.load(folder / f"{CASE}.npz", allow_pickle=False) as stored:
        model, ids = load_model(stored), stored["input_ids"]
    loss, gradients = loss_and_gradients(model, ids)
    wide_loss, wide = loss_and_gradients(model.to(torch.float64), ids)
    path = folder / "gradients.npz"
    np.savez_compressed(
        path,
        case=np.array(CASE),
        loss=loss,
        transformers=np.array(transformers.__version__),
        torch=np.array(torch.__version__),
        **{f"gradient:{name}": gradient for name, gradient in gradients.items()},
    )
    print(
        f"{path.name}: {path.stat().st_size / 1e3:.0f} kB, loss {loss:.7f}, {wide_loss:.10f} in "
        f"double precision"
    )
    for name, gradient in gradients.items():
        difference = np.abs(gradient - wide[name]).max()
        print(f"{name:40s} largest {np.abs(gradient).max():.1e}  from double {difference:.1e}")


if __name__ == "__main__":
    main()
