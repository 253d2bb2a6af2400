"""Import a synthetic GPT-J-6B of full size: peak anonymous memory, and MB/s against `cp`.

    python benchmarks/import_gptj_6b.py [--folder FOLDER] [--layers 28]

Makes the Hugging Face folder on the spot (three bfloat16 shards, 12.1 GB; 37 GB of disk in all),
then times, in turn: `cp`, conversion without reading back, and `bluejay convert` whole, which also
hashes and compares every value. Anonymous memory (RssAnon) is sampled every 10 ms: the mapped file
is the kernel's to drop, and does not count.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import ml_dtypes
import numpy as np

from bluejay.checkpoints.conversion import published_tensors
from bluejay.checkpoints.families import write_config
from bluejay.checkpoints.safetensors_writer import SafetensorsWriter, TensorSpec
from bluejay.checkpoints.tables import TABLES
from bluejay.model.presets import gptj_config, preset

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
WRITE_ONLY = """
import sys
from pathlib import Path
from bluejay.checkpoints.convert import write_model
from bluejay.checkpoints.model_files import open_model
write_model(open_model(Path(sys.argv[1])), Path(sys.argv[2]), to="native")
"""


def make_folder(folder: Path, num_layers: int) -> int:
    """Write the model; gives its bytes. Values are finite and differ from place to place."""
    config = preset("gptj-6b")
    if num_layers != config.num_layers:
        config = gptj_config(num_layers, 4096, 16, rotary_dim=64)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(write_config("gptj", config)))
    noise = np.random.default_rng(0).normal(0, 0.02, 1 << 22).astype(np.float32).astype(BFLOAT16)
    specs = [
        TensorSpec(name=item.name, shape=item.shape, dtype=BFLOAT16)
        for item in published_tensors(TABLES["gptj"], config)
    ]
    shapes = {spec.name: spec.shape for spec in specs}
    with SafetensorsWriter(folder, specs, max_shard_bytes=5 * 10**9) as writer:
        for number, name in enumerate(writer.order):
            size = int(np.prod(shapes[name]))
            values = np.resize(np.roll(noise, 97 * number), size)
            writer.write(name, values.reshape(shapes[name]))
    return sum(path.stat().st_size for path in folder.iterdir())


def run(command: list[str]) -> tuple[float, float]:
    """(seconds, peak anonymous MB) of a child process."""
    began, peak = time.perf_counter(), 0
    child = subprocess.Popen(command)
    status = Path(f"/proc/{child.pid}/status")
    while child.poll() is None:
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
            peak = max(peak, int(fields.get("RssAnon", "0 kB").split()[0]))
        except (OSError, ValueError):
            pass
        time.sleep(0.01)
    if child.returncode:
        sys.exit(f"{command[:3]} failed with {child.returncode}")
    return time.perf_counter() - began, peak / 1024


def report(label: str, num_bytes: int, seconds: float, peak: float) -> None:
    print(
        f"{label:<34} {seconds:7.1f} s {num_bytes / seconds / 1e6:8.0f} MB/s "
        f"{peak:7.0f} MB anonymous",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=None)
    parser.add_argument("--layers", type=int, default=28)
    arguments = parser.parse_args()
    work = Path(tempfile.mkdtemp(dir=arguments.folder, prefix="gptj-6b-"))
    try:
        num_bytes = make_folder(work / "hf", arguments.layers)
        print(f"{num_bytes / 1e9:.2f} GB of bfloat16 in {len(list((work / 'hf').iterdir()))} files")
        source, copy, native = work / "hf", work / "copy", work / "native"
        for _ in range(2):
            seconds, peak = run(["cp", "-r", str(source), str(copy)])
            report("cp -r", num_bytes, seconds, peak)
            shutil.rmtree(copy)
            seconds, peak = run([sys.executable, "-c", WRITE_ONLY, str(source), str(native)])
            report("import to native, hashed", num_bytes, seconds, peak)
            shutil.rmtree(native)
        command = [sys.executable, "-m", "bluejay", "convert", str(source), str(native)]
        seconds, peak = run([*command, "--to", "native"])
        report("bluejay convert, read back as well", num_bytes, seconds, peak)
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
