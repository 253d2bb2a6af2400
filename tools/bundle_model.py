"""Put the newest checkpoint of a run into the package, in bfloat16.

    python tools/bundle_model.py runs/bluejay-tiny

The model card beside it, README.md, is kept.
"""

import shutil
import sys
from pathlib import Path

from bluejay.checkpoints.convert import convert
from bluejay.checkpoints.locate import locate
from bluejay.checkpoints.native import seal

BUNDLED = Path(__file__).resolve().parent.parent / "src" / "bluejay" / "bundled"
CARD = "README.md"
# transformers' older names for what tokenizer.json holds: half of the tokenizer's size.
NOT_NEEDED = ("vocab.json", "merges.txt", "added_tokens.json")


def main(run: str, name: str) -> None:
    destination, fresh = BUNDLED / name, BUNDLED / f".{name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    BUNDLED.mkdir(exist_ok=True)
    report = convert(locate(run), fresh, to="native", dtype="bfloat16")
    for extra in NOT_NEEDED:
        (fresh / extra).unlink(missing_ok=True)
    if (destination / CARD).exists():
        shutil.copy(destination / CARD, fresh / CARD)
    seal(fresh)
    shutil.rmtree(destination, ignore_errors=True)
    fresh.rename(destination)
    size = sum(file.stat().st_size for file in destination.iterdir())
    print(f"{destination}: {report.num_parameters:,} parameters, {size:,} bytes")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "bluejay-tiny")
