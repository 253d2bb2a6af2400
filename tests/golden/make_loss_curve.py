"""Write down the losses of the nano recipe on this kind of machine: loss_curve.json gains a key.

    python tests/golden/make_loss_curve.py

Only after a change that is meant to alter numbers, with the reason in docs/lab-book.md.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

os.environ.setdefault("BLUEJAY_CACHE", tempfile.mkdtemp())

from training_runs import best_kernels, bluejay, losses, new_run, prepared_text, this_machine  # noqa: E402

GOLDEN = TESTS / "golden" / "loss_curve.json"


def main() -> None:
    curves = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        data = prepared_text(Path(folder))
        for kernels in (best_kernels(), "off"):
            run = Path(folder) / kernels
            new_run(run, data)
            done = bluejay("resume", run, BLUEJAY_KERNELS=kernels)
            assert done.returncode == 0, done.stderr
            curves[this_machine(kernels)] = losses(run)
    GOLDEN.write_text(json.dumps(dict(sorted(curves.items())), indent=1) + "\n")
    print(f"{GOLDEN.name}: {this_machine(kernels)}, {len(curves)} kinds of machine")


if __name__ == "__main__":
    main()
