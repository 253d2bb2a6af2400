"""What the machine gives at this moment: read bandwidth and a float32 matrix product.

    python benchmarks/yardsticks.py [--threads 2] [--json]

Bandwidth is that of reading 1 GiB, each thread its own part, best of five; the reading loop is C,
compiled on the spot, because NumPy's reductions are bound by arithmetic. Without a compiler NumPy's
`max` reads, and the line says so. The product is NumPy's (its BLAS) of 2048 x 2048 matrices.
"""

import argparse
import ctypes
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

GIBIBYTE = 2**30
SIZE = 2048
REPEATS = 5
# Sums of four streams of vectors: enough independent additions to keep every load in flight.
SOURCE = """
#include <stddef.h>
#include <stdint.h>
uint64_t read_all(const uint64_t *values, size_t count) {
  uint64_t a = 0, b = 0, c = 0, d = 0;
  size_t quarter = count / 4;
  const uint64_t *p = values, *q = p + quarter, *r = q + quarter, *s = r + quarter;
  for (size_t i = 0; i < quarter; ++i) { a += p[i]; b += q[i]; c += r[i]; d += s[i]; }
  return a + b + c + d;
}
"""
Reader = Callable[[NDArray[np.uint64]], object]


def compiled_reader(folder: Path) -> Reader | None:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return None
    source, library = folder / "read.c", folder / "read.so"
    source.write_text(SOURCE)
    command = [compiler, "-O3", "-march=native", "-shared", "-fPIC", str(source), "-o"]
    if subprocess.run([*command, str(library)], stderr=subprocess.DEVNULL).returncode:
        return None
    read_all = ctypes.CDLL(str(library)).read_all
    read_all.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    read_all.restype = ctypes.c_uint64
    return lambda part: read_all(part.ctypes.data, part.size)


def bandwidth(read: Reader, threads: int) -> float:
    """GB/s."""
    values = np.ones(GIBIBYTE // 8, np.uint64)
    parts = np.array_split(values, threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(REPEATS + 1):
            began = time.perf_counter()
            list(pool.map(read, parts))
            best = min(best, time.perf_counter() - began)
    return GIBIBYTE / best / 1e9


def product() -> float:
    """GFLOP/s."""
    matrix = np.ones((SIZE, SIZE), np.float32)
    best = float("inf")
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        np.matmul(matrix, matrix)
        best = min(best, time.perf_counter() - began)
    return 2 * SIZE**3 / best / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        read = compiled_reader(Path(folder))
        found = {
            "read_gb_s": round(bandwidth(read or np.max, given.threads), 2),
            "product_gflop_s": round(product(), 1),
            "reader": "C" if read else "NumPy",
        }
    if given.json:
        print(json.dumps(found))
        return
    print(f"read {found['read_gb_s']} GB/s ({found['reader']}, {given.threads} threads)")
    print(f"float32 product {found['product_gflop_s']} GFLOP/s")


if __name__ == "__main__":
    main()
