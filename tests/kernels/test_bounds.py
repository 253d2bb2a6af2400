"""Kernels read no byte behind the last of a weight: there lies a page that kills who reads it."""

import subprocess
import sys

from bluejay.kernels.library import Library

# In a process of its own, which a read of that page kills.
CODE = """
import ctypes, mmap, sys
import jax, numpy as np
from bluejay.kernels.decoding import StoredWeight, multiply_weights
from bluejay.kernels.library import library

def before_a_guard(values):
    pages = -(-values.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
    whole = np.frombuffer(mmap.mmap(-1, pages + mmap.PAGESIZE), np.uint8)
    guard, size = ctypes.c_void_p(whole.ctypes.data + pages), ctypes.c_size_t(mmap.PAGESIZE)
    assert ctypes.CDLL(None).mprotect(guard, size, 0) == 0
    kept = whole[pages - values.nbytes : pages].view(values.dtype).reshape(values.shape)
    kept[...] = values
    placed = jax.device_put(kept)
    assert placed.unsafe_buffer_pointer() == kept.ctypes.data, "copied, so nothing is shown"
    return placed

assert library().force(sys.argv[1])
random = np.random.default_rng(0)
for bits in (8, 4):
    for blocks in (2, 18):
        stored = before_a_guard(random.integers(0, 256, (3, blocks, 64 * bits), np.uint8))
        scales = random.uniform(0.01, 0.1, (3, blocks, 16)).astype(np.float16)
        offsets = before_a_guard(scales) if bits == 4 else None
        weight = StoredWeight(stored, before_a_guard(scales), offsets)
        for rows in (1, 2, 4, 8, 19):
            x = random.normal(size=(rows, 32 * blocks)).astype(np.float32)
            assert np.isfinite(multiply_weights(jax.numpy.asarray(x), weight, outputs=37)).all()
print("inside", flush=True)
if sys.argv[2:]:
    ctypes.string_at(stored.unsafe_buffer_pointer() + stored.nbytes, 1)
"""


def run(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CODE, *words]
    return subprocess.run(command, capture_output=True, text=True)


def test_nothing_behind_a_weight_is_read(native: Library) -> None:
    done = run(native.instruction_set)
    assert (done.returncode, done.stdout) == (0, "inside\n"), done.stderr


def test_the_page_behind_it_kills() -> None:
    done = run("portable", "and behind")
    assert done.stdout == "inside\n", done.stderr
    assert done.returncode != 0
