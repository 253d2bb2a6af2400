"""How far rounding moves a model's predictions: packed weights and llama.cpp against exact float32.

    python benchmarks/against_fp32.py MODEL.gguf TEXT [--peers FOLDER] [--tokens 2048]

The text's first tokens are cut into windows that each begin with the document start. Every side
runs in a process of its own and predicts each next token:

- exact: weights of the file as float32, products of the reference implementation in float32
  (BLUEJAY_KERNELS=off), which is what the file says;
- Bluejay: the model as `bluejay.load` brings it;
- llama.cpp: its defaults, on the same file (peers/build.sh makes it).

The table has perplexity, the mean of KL(exact || side) over positions with the place that 99 % of
the positions stay below, and how often the likeliest token is the exact one. The standard error of
a mean is over positions. A rate is comparable at the same bits and the same loss of quality: this
is the second half of decode_peers.py.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.locate import locate
from bluejay.checkpoints.model_files import open_model
from bluejay.kernels.library_file import VARIABLE
from bluejay.runs.doctor import look_at_machine
from bluejay.text.conventions import conventions_of

HERE = Path(__file__).parent
EXACT = "exact float32"
# The types of weights (by default as stored) and of the cache, and variables of the process.
OURS = {
    EXACT: ("float32,float32", {VARIABLE: "off"}),
    "Bluejay, float32 cache": (",float32", {}),
    "Bluejay, float16 cache": (",float16", {}),
    "Bluejay, int8 cache": (",int8", {}),
}
PEER = "llama.cpp"


@dataclass(frozen=True, kw_only=True)
class Quality:
    """Means over positions, each with its standard error where one is named."""

    nats: float
    divergence: float
    divergence_error: float
    divergence_99: float
    agreement: float
    positions: int


def windows_of(model: Path, text: Path, *, tokens: int, length: int) -> NDArray[np.int32]:
    """[windows, length] ids, the document start first in each."""
    tokenizer = open_model(model).tokenizer()
    if tokenizer is None:
        raise SystemExit(f"{model} has no tokenizer, and the text must become ids.")
    start = list(conventions_of(tokenizer).document_start)
    # Five bytes make a token or more in English; what is too much is cut off.
    ids = tokenizer.encode(text.read_bytes()[: 8 * tokens].decode(errors="ignore"))[:tokens]
    inner = length - len(start)
    rows = [start + ids[begin : begin + inner] for begin in range(0, len(ids), inner)]
    whole = [row for row in rows if len(row) == length]
    if not whole:
        raise SystemExit(f"{text} has {len(ids)} tokens, and a window has {inner}: shorten it.")
    return np.asarray(whole, np.int32)


def write_ours(model: str, ids: Path, to: Path, dtypes: str) -> None:
    """What one of our sides does in its process."""
    import bluejay

    windows = np.load(ids)
    dtype, cache_dtype = dtypes.split(",")
    loaded = bluejay.load(model, dtype=dtype or None, cache_dtype=cache_dtype)
    shape = (*windows.shape, loaded.config.vocab_size)
    logits = np.lib.format.open_memmap(to, mode="w+", dtype=np.float32, shape=shape)
    for number, row in enumerate(windows.tolist()):
        logits[number] = loaded.logits(row)
    logits.flush()


def run(command: list[str], variables: dict[str, str]) -> str | None:
    """None if it went well, otherwise the last line that it said."""
    environment = os.environ | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    said = done.stderr.strip().splitlines()
    return (said[-1] if said else f"exit {done.returncode}") if done.returncode else None


def all_logits(model: Path, ids: Path, peers: Path | None) -> dict[str, NDArray[np.float32]]:
    """Side -> [windows, length, vocabulary], mapped from files beside `ids`."""
    commands = {
        name: ([sys.executable, __file__, f"--write={dtypes}", str(model), str(ids)], variables)
        for name, (dtypes, variables) in OURS.items()
    }
    if peers is not None:
        script = str(HERE / "peers" / "logits_llama_cpp.py")
        command = [str(peers / "venv" / "bin" / "python"), script, str(model), str(ids)]
        commands[PEER] = command, {"LLAMA_CPP_LIB_PATH": str(peers / "llama.cpp" / "bin")}
    found = {}
    for name, (command, variables) in commands.items():
        to = ids.with_name(f"{name}.npy")
        try:
            failure = run([*command, str(to)], variables)
        except OSError as error:
            failure = str(error)
        if failure is not None:
            print(f"{name} is left out: {failure}.", file=sys.stderr)
            continue
        found[name] = np.load(to, mmap_mode="r")
    return found


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def quality(
    exact: NDArray[np.float32], side: NDArray[np.float32], windows: NDArray[np.int32]
) -> Quality:
    nats, divergences, same = [], [], []
    for row, ours, ids in zip(exact, side, windows, strict=True):
        # The last position predicts a token that is not in the window.
        reference, found = log_probabilities(row[:-1]), log_probabilities(ours[:-1])
        nats.append(-found[np.arange(len(ids) - 1), ids[1:]])
        divergences.append((np.exp(reference) * (reference - found)).sum(axis=-1))
        same.append(reference.argmax(axis=-1) == found.argmax(axis=-1))
    divergence = np.concatenate(divergences)
    return Quality(
        nats=float(np.concatenate(nats).mean()),
        divergence=float(divergence.mean()),
        divergence_error=float(divergence.std() / math.sqrt(len(divergence))),
        divergence_99=float(np.quantile(divergence, 0.99)),
        agreement=float(np.concatenate(same).mean()),
        positions=len(divergence),
    )


def report(model: Path, found: dict[str, Quality]) -> None:
    machine = look_at_machine()
    positions = next(iter(found.values())).positions
    print(f"{model.name}, {positions} positions; {date.today()}, {machine.processor}")
    print(f"{', '.join(machine.instruction_sets)}\n")
    print("| | nats per token | perplexity | KL from exact | KL, 99 % below | same top token |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, item in found.items():
        print(
            f"| {name} | {item.nats:.4f} | {math.exp(item.nats):.3f} | {item.divergence:.2e} ± "
            f"{item.divergence_error:.0e} | {item.divergence_99:.2e} | {item.agreement:.1%} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("to", type=Path, nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("--peers", type=Path, help="what peers/build.sh made")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--scratch", type=Path, help="where logits wait: 0.4 GB a side and more")
    parser.add_argument("--write", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.write is not None:
        write_ours(given.model, given.text, given.to, given.write)
        return
    model = locate(given.model).absolute()
    windows = windows_of(model, given.text, tokens=given.tokens, length=given.window)
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        ids = Path(folder) / "ids.npy"
        np.save(ids, windows)
        found = all_logits(model, ids, given.peers and given.peers.absolute())
        if EXACT not in found:
            raise SystemExit("Without the exact side there is nothing to compare with.")
        exact = found[EXACT]
        report(model, {name: quality(exact, side, windows) for name, side in found.items()})


if __name__ == "__main__":
    main()
