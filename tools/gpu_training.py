"""Train bluejay-small on a machine with a GPU and without a network, in sittings of some minutes.

    python tools/gpu_training.py pack                 here: wheels and text into .cache/gpu
    python tools/gpu_training.py sit --minutes 8.5    there: install, prepare, train, hand out

`sit` may be called again on the same machine: it goes on with the run in .cache/gpu/run. What it
hands out lies in $OUT (or .cache/gpu/out): the newest parameters in bfloat16, in files of at most
15 MB, with config, tokenizer and measurements; `bluejay convert` makes any other format of them.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / ".cache" / "gpu"
WHEELS, BOOKS = PLACE / "wheels", PLACE / "data" / "text" / "books"
# What training imports beside JAX, NumPy, ml_dtypes, safetensors and tokenizers.
PACKAGES = (
    *("absl-py", "filelock", "gguf", "jaxtyping", "optax", "wadler-lindig", "zstandard"),
    *("pyyaml", "tqdm"),
)
MOST_TEXT_BYTES = 30_000_000
MOST_FILE_BYTES = 15_000_000
EXIT_SAVED = 75


def pack(data: Path, python: str) -> None:
    """Fetch the wheels for that Python, and copy books as far as 30 MB go."""
    WHEELS.mkdir(parents=True, exist_ok=True)
    BOOKS.mkdir(parents=True, exist_ok=True)
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "-d", str(WHEELS)]
    target = ["--only-binary=:all:", "--python-version", python]
    subprocess.run([*fetch, *target, *PACKAGES], check=True)
    room = MOST_TEXT_BYTES
    for archive in sorted((data / "text" / "books").glob("*.tar.zst")):
        if archive.stat().st_size <= room:
            room -= archive.stat().st_size
            shutil.copy(archive, BOOKS / archive.name)
    size = sum(path.stat().st_size for path in PLACE.rglob("*") if path.is_file())
    print(f"{PLACE.relative_to(ROOT)}: {size / 1e6:.1f} MB to carry")


def sit(minutes: float, recipe: str) -> None:
    """One sitting: train until the time is up, then hand out what there is."""
    site, run = PLACE / "site", PLACE / "run"
    if not site.is_dir():
        install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
        wheels = sorted(map(str, WHEELS.glob("*.whl")))
        subprocess.run([*install, "--target", str(site), *wheels], check=True)
    paths = [str(ROOT / "src"), str(site), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        "BLUEJAY_CACHE": str(PLACE / "cache"),
    }
    begin = ["train", recipe, "--data", str(PLACE / "data"), "--run", str(run)]
    verb = ["resume", str(run)] if (run / "run.json").exists() else begin
    command = [sys.executable, "-m", "bluejay", *verb, "--minutes", str(minutes)]
    code = subprocess.run(command, env=environment, check=False).returncode
    if code not in (0, EXIT_SAVED):
        sys.exit(code)
    hand_out(run, Path(os.environ.get("OUT") or PLACE / "out"), environment)


def hand_out(run: Path, out: Path, environment: dict[str, str]) -> None:
    """The newest checkpoint in bfloat16 and small files, and what was measured."""
    script = (
        "import sys; from pathlib import Path; from bluejay.checkpoints.convert import convert; "
        "from bluejay.checkpoints.locate import locate; "
        "convert(locate(sys.argv[1]), Path(sys.argv[2]), to='hf', dtype='bfloat16', "
        f"max_shard_bytes={MOST_FILE_BYTES})"
    )
    made = PLACE / "model"
    shutil.rmtree(made, ignore_errors=True)
    subprocess.run([sys.executable, "-c", script, str(run), str(made)], env=environment, check=True)
    out.mkdir(parents=True, exist_ok=True)
    small = [path for path in made.iterdir() if path.suffix != ".safetensors"]
    notes = [run / name for name in ("metrics.jsonl", "samples.jsonl", "run.json", "status.json")]
    archive = PLACE / "rest"
    shutil.rmtree(archive, ignore_errors=True)
    archive.mkdir()
    for path in [*small, *filter(Path.exists, notes)]:
        shutil.copy(path, archive / path.name)
    shutil.make_archive(str(out / "rest"), "gztar", archive)
    for path in made.glob("*.safetensors"):
        shutil.copy(path, out / path.name)
    for path in sorted(out.iterdir()):
        print(f"{path.name}: {path.stat().st_size:,} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("verb", choices=("pack", "sit"))
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--recipe", default="bluejay-small")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("BLUEJAY_DATA") or "."))
    parser.add_argument("--python", default="3.12")
    given = parser.parse_args()
    if given.verb == "pack":
        pack(given.data, given.python)
    else:
        sit(given.minutes, given.recipe)


if __name__ == "__main__":
    main()
