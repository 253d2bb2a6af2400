"""What narrower keys and values cost in quality: caches of float16 and bytes against float32.

    python benchmarks/cache_dtypes.py MODEL TEXT [--dtype float32]
                                      [--tokens 4096] [--window 2048]

The same model, as `bluejay.load` brings it, predicts each next token of the text's windows with
each type of cache. The columns are those of against_fp32.py, the reference is the float32 cache.
Packed weights round what comes to them to 8 bits, so any other last bit in the cache moves a
prediction about as far as that rounding does; with --dtype float32 the cache's own part is seen.
"""

import argparse
import math
from datetime import date
from pathlib import Path

import numpy as np
from against_fp32 import Quality, quality, windows_of
from numpy.typing import NDArray

import bluejay
from bluejay.checkpoints.locate import locate
from bluejay.kernels.decoding import CACHE_DTYPES
from bluejay.runs.doctor import look_at_machine


def measured(
    model: Path, windows: NDArray[np.int32], dtype: str | None
) -> dict[str, list[Quality]]:
    """Per type a Quality of every window."""
    sides = {kept: bluejay.load(model, dtype=dtype, cache_dtype=kept) for kept in CACHE_DTYPES}
    found: dict[str, list[Quality]] = {kept: [] for kept in CACHE_DTYPES}
    for row in windows:
        ids = row.tolist()
        exact = sides["float32"].logits(ids)[None]
        for kept, side in sides.items():
            found[kept].append(quality(exact, side.logits(ids)[None], row[None]))
    return found


def report(found: dict[str, list[Quality]]) -> None:
    print("| cache | perplexity | bits per token | KL from float32 | 99 % below | same top token |")
    print("|---|---:|---:|---:|---:|---:|")
    for dtype, parts in found.items():
        nats = float(np.mean([part.nats for part in parts]))
        cells = [
            f"{math.exp(nats):.3f}",
            f"{nats / math.log(2):.5f}",
            f"{np.mean([part.divergence for part in parts]):.2e}",
            f"{max(part.divergence_99 for part in parts):.1e}",
            f"{np.mean([part.agreement for part in parts]):.2%}",
        ]
        print(f"| {dtype} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--dtype", help="float32: weights that are packed are widened")
    given = parser.parse_args()
    model = locate(given.model)
    windows = windows_of(model, given.text, tokens=given.tokens, length=given.window)
    found = measured(model, windows, given.dtype)
    machine = look_at_machine()
    print(f"{given.model}: {len(windows)} windows of {given.window} tokens; {date.today()}")
    print(f"{machine.processor}, {machine.kernels}\n")
    report(found)


if __name__ == "__main__":
    main()
