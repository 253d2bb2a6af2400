"""What this machine is, and which of the presets it can run and fine-tune, in numbers."""

import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from bluejay.checkpoints.locate import PresentModel, present_models
from bluejay.checkpoints.model_cache import cache_root, folder_bytes
from bluejay.checkpoints.model_files import open_model
from bluejay.core.errors import CheckpointError
from bluejay.core.memory import available_bytes, total_bytes
from bluejay.kernels.library import library_status
from bluejay.kernels.threads import usable_cores
from bluejay.model.config import DecoderConfig
from bluejay.model.presets import PRESETS
from bluejay.nn.contract import contract
from bluejay.runs.compile_cache import compile_cache_folder
from bluejay.runs.decode_costs import (
    Weights,
    config_weights,
    file_weights,
    predicted_step_seconds,
)
from bluejay.runs.model_info import ModelInfo, model_info

FINE_TUNE_FORMULA = (
    "16 bytes per parameter (float32 weights, gradients and Adam's two moments), and for one "
    "sequence of the whole context, recomputing inside blocks: 4 bytes x context x (layers x "
    "width + 2 x vocabulary)"
)
_BYTES_TO_FINE_TUNE = 16
# Those that matter to matrix products, in the words of /proc/cpuinfo (x86, then Arm).
_INSTRUCTION_SETS = (
    *("avx", "avx2", "fma", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "avx_vnni"),
    *("amx_bf16", "amx_int8", "amx_tile", "asimd", "asimddp", "bf16", "i8mm", "sve", "sve2"),
)
_PACKAGES = ("bluejay", "jax", "jaxlib", "numpy", "safetensors", "tokenizers", "huggingface_hub")
# Larger than the caches of a desktop's or a laptop's processor, read in about 20 ms there.
_PROBE_BYTES = 256 * 2**20
_PROBE_SECONDS = 0.25
_LARGE = "gptj-6b"
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What there is to work with. Memory and disk in bytes, `device_memory` 0 for a CPU."""

    processor: str
    num_cores: int
    num_usable_cores: int
    instruction_sets: tuple[str, ...]
    kernels: str
    memory_total: int
    memory_free: int
    cache_folder: Path
    disk_free: int
    devices: tuple[str, ...]
    platform: str
    device_memory: int
    versions: Mapping[str, str]
    system: str
    compile_cache: Path
    compile_cache_bytes: int


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What one preset needs, and what it can come to; sizes in bytes.

    `missing` is by how much the narrower weights and their cache exceed the free memory, or 0;
    `dtype` the widest that fits, or None; `tokens_per_second` a ceiling in that dtype: the
    measured rate of reading weights in a matrix product over the bytes read per token.
    """

    name: str
    parameters: int
    need: Mapping[str, int]
    dtype: str | None
    missing: int
    tokens_per_second: float | None
    fine_tune: int
    can_fine_tune: bool


def look_at_machine() -> Machine:
    """Everything about this machine that matters, from the system and from JAX."""
    device = jax.devices()[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    folder = cache_root()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    compiled = compile_cache_folder()
    return Machine(
        processor=_processor(),
        num_cores=os.cpu_count() or 1,
        num_usable_cores=usable_cores(),
        instruction_sets=_instruction_sets(),
        kernels=library_status(),
        memory_total=min(total_bytes(), _container_limit("memory.max") or total_bytes()),
        memory_free=_memory_free(),
        cache_folder=folder,
        disk_free=shutil.disk_usage(existing).free,
        devices=tuple(f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()),
        platform=device.platform,
        device_memory=stats["bytes_limit"] - stats["bytes_in_use"] if stats else 0,
        versions=_versions(),
        system=f"{platform.system()} {platform.release()}, {platform.machine()}",
        compile_cache=compiled,
        compile_cache_bytes=folder_bytes(compiled),
    )


def read_rates() -> dict[str, float]:
    """Bytes of weights per second that a product with one row reads, by dtype: what decoding one
    sequence does all the time. Takes half a second and 256 MB."""
    return {
        name: _read_rate(dtype)
        for name, dtype in (("float32", jnp.float32), ("bfloat16", "bfloat16"))
    }


def judge(machine: Machine, rates: Mapping[str, float]) -> list[Verdict]:
    """A verdict for every preset, smallest first."""
    infos = {name: model_info(config) for name, config in PRESETS.items()}
    free = machine.device_memory or machine.memory_free
    verdicts = [_verdict(name, info, free=free, rates=rates) for name, info in infos.items()]
    return sorted(verdicts, key=lambda verdict: verdict.parameters)


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What decoding one text with native kernels comes to; sizes in bytes.

    `stored` says how the weights lie in memory, `missing` by how much they exceed what is free, or
    0. `problem` is why a model that is here cannot be judged, or None.
    """

    name: str
    stored: str
    bytes_per_token: int = 0
    tokens_per_second: float = 0.0
    missing: int = 0
    problem: str | None = None


def predict(machine: Machine, bandwidth: float) -> list[Prediction]:
    """For every named model that is here, and for GPT-J-6B as it can be stored.

    `bandwidth` in bytes per second. Reads headers and no tensor.
    """
    found = [_predict_present(model, machine, bandwidth) for model in present_models()]
    config = PRESETS[_LARGE]
    for kind in ("int4", "int8"):
        weights = config_weights(config, kind)
        found.append(_prediction(_LARGE, (weights, config), machine, bandwidth))
    return found


def _predict_present(model: PresentModel, machine: Machine, bandwidth: float) -> Prediction:
    name = model.entry.name
    try:
        files = open_model(model.path)
    except CheckpointError as error:
        return Prediction(name=name, stored="", problem=str(error))
    try:
        return _prediction(name, (file_weights(files), files.config), machine, bandwidth)
    finally:
        files.close()


def _prediction(
    name: str, what: tuple[Weights, DecoderConfig], machine: Machine, bandwidth: float
) -> Prediction:
    weights, config = what
    seconds = predicted_step_seconds(weights, config, bandwidth=bandwidth)
    return Prediction(
        name=name,
        stored=_kinds(weights.read),
        bytes_per_token=sum(weights.read.values()),
        tokens_per_second=1 / seconds,
        missing=max(0, weights.total - machine.memory_free),
    )


def _kinds(read: Mapping[str, int]) -> str:
    """The kinds of storage in order of bytes; norms and biases are not worth a word."""
    named = [kind for kind in read if read[kind] > 0.02 * sum(read.values())]
    return ", ".join(sorted(named, key=lambda kind: -read[kind]))


def fine_tune_bytes(config: DecoderConfig, parameters: int) -> int:
    """Memory of training in float32 with Adam: FINE_TUNE_FORMULA."""
    kept = config.num_layers * config.embed_dim + 2 * config.vocab_size
    return _BYTES_TO_FINE_TUNE * parameters + 4 * config.context_length * kept


def _verdict(name: str, info: ModelInfo, *, free: int, rates: Mapping[str, float]) -> Verdict:
    need = {dtype: info.weight_bytes[dtype] + info.cache_bytes["float32"] for dtype in rates}
    fitting = [dtype for dtype in need if need[dtype] <= free]
    # The fastest, not the widest: on CPUs bfloat16 is converted at every call.
    speeds = {dtype: rates[dtype] / _bytes_per_token(info, dtype) for dtype in fitting}
    best = max(speeds, key=speeds.__getitem__) if speeds else None
    training = fine_tune_bytes(info.config, info.parameters)
    return Verdict(
        name=name,
        parameters=info.parameters,
        need=need,
        dtype=best,
        missing=max(0, min(need.values()) - free),
        tokens_per_second=speeds[best] if best else None,
        fine_tune=training,
        can_fine_tune=training <= free,
    )


def _bytes_per_token(info: ModelInfo, dtype: str) -> int:
    """Weights that a token's forward pass reads: of tables that are looked up, one row."""
    looked_up = {"positions"} if info.config.variant.tied_head else {"positions", "embedding"}
    read = sum(group.parameters for group in info.tensors if group.name not in looked_up)
    return read * (info.weight_bytes[dtype] // info.parameters)


def _read_rate(dtype: DTypeLike) -> float:
    width = 4096
    rows = _PROBE_BYTES // (width * jnp.dtype(dtype).itemsize)
    weight = jnp.ones((rows, width), dtype)
    x = jnp.ones((1, width), dtype)
    product = jax.jit(partial(contract, "TD,FD->TF"))
    product(x, weight).block_until_ready()
    best, began = float("inf"), time.perf_counter()
    while time.perf_counter() - began < _PROBE_SECONDS or best == float("inf"):
        start = time.perf_counter()
        product(x, weight).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return weight.nbytes / best


def _memory_free() -> int:
    limit = _container_limit("memory.max")
    if limit is None:
        return available_bytes()
    used = _container_limit("memory.current") or 0
    return max(0, min(available_bytes(), limit - used))


def _container_limit(name: str) -> int | None:
    try:
        text = (_CGROUP / name).read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return None
    return int(text) if text.isdigit() else None


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), re.M)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _instruction_sets() -> tuple[str, ...]:
    found = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", _cpuinfo(), re.M)
    flags = set(found[1].split()) if found else set()
    return tuple(name for name in _INSTRUCTION_SETS if name in flags)


def _versions() -> dict[str, str]:
    found = {"python": sys.version.split()[0]}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
