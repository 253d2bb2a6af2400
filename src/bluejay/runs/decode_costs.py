"""What a decoded token costs: the bytes that it reads, and the time that follows from them.

A step reads every weight once, as it is stored, and the keys and values of its rows; of a table
that is looked up it reads a row. Its time on native kernels is

    sum over kinds of storage: bytes / (read bandwidth * share of the kind)
    + layers * seconds per layer + ids * seconds per id

where the bandwidth is measured on the machine, and the constants were fitted to
benchmarks/predictions.py on two cores of one kind (docs/lab-book.md, 2026-11-28). A layer's seconds
are what threads wait for one another, what its small matrices lose and XLA's calls; an id's are the
choice of the next one. A model that the processor's caches hold in part is faster than that.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from bluejay.checkpoints.model_files import ModelFiles
from bluejay.checkpoints.packing import PACKINGS, Packing, packing_of
from bluejay.checkpoints.quantization import packing_plan
from bluejay.model.config import DecoderConfig
from bluejay.model.params import DecoderParams, named_leaves
from bluejay.model.specs import decoder_specs
from bluejay.nn.quantized import QuantizedWeight

SHARE_OF_BANDWIDTH = {"int4": 0.88, "int8": 0.85, "16 bits": 0.85, "float32": 0.90}
SECONDS_PER_LAYER = 30e-6
SECONDS_PER_ID = 3e-9
_SCALE_BYTES = 4

_Sizes = Iterator[tuple[str, str, int]]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Bytes that a step reads, by kind of storage (the keys of SHARE_OF_BANDWIDTH), and bytes of
    all weights."""

    read: Mapping[str, int]
    total: int


def stored_weights(params: DecoderParams) -> Weights:
    """Of loaded parameters."""

    def sizes() -> _Sizes:
        for name, leaf in named_leaves(params).items():
            if isinstance(leaf, QuantizedWeight):
                parts = (leaf.codes, leaf.scales, leaf.offsets)
                num_bytes = sum(part.nbytes for part in parts if part is not None)
                yield name, _packed_kind(packing_of(leaf)), num_bytes
            else:
                yield name, _dense_kind(leaf.dtype.itemsize), leaf.nbytes

    return _weighed(sizes(), is_tied=params.head is None)


def file_weights(files: ModelFiles) -> Weights:
    """Of a model as `load` brings it to a CPU, before a tensor is read."""

    def sizes() -> _Sizes:
        for name, info in files.source.tensors.items():
            if info.packing is None:
                yield name, "float32", 4 * math.prod(info.shape)
            else:
                yield name, _packed_kind(PACKINGS[info.packing]), info.num_bytes

    return _weighed(sizes(), is_tied=files.config.variant.tied_head)


def config_weights(config: DecoderConfig, kind: str) -> Weights:
    """Of a model of that shape as `bluejay quantize` writes it (int4, int8), or with all weights
    of 16 bits or in float32."""
    is_packed = kind in ("int4", "int8")
    bits = int(kind.removeprefix("int")) if is_packed else 0
    plan = packing_plan(config, bits=bits, has_offsets=False) if is_packed else {}
    width = 2 if kind == "16 bits" else 4

    def sizes() -> _Sizes:
        for name, spec in named_leaves(decoder_specs(config)).items():
            if name in plan:
                yield name, _packed_kind(plan[name]), plan[name].num_bytes(spec)
            else:
                yield name, _dense_kind(width), width * math.prod(spec.shape)

    return _weighed(sizes(), is_tied=config.variant.tied_head)


def cache_bytes_per_position(config: DecoderConfig, dtype: str) -> int:
    """Of keys and values of all layers; int8 has a scale per position and head."""
    row = {"float32": 4, "float16": 2, "int8": 1}[dtype] * config.head_dim
    row += _SCALE_BYTES if dtype == "int8" else 0
    return 2 * config.num_layers * config.num_kv_heads * row


def predicted_step_seconds(
    weights: Weights, config: DecoderConfig, *, bandwidth: float, cached: float = 0.0
) -> float:
    """Of one row; `bandwidth` in bytes per second, `cached` the bytes of keys and values."""
    shares = SHARE_OF_BANDWIDTH
    reading = sum(size / (bandwidth * shares[kind]) for kind, size in weights.read.items())
    reading += cached / (bandwidth * shares["float32"])
    choosing = SECONDS_PER_ID * config.vocab_size
    return reading + SECONDS_PER_LAYER * config.num_layers + choosing


def _weighed(sizes: _Sizes, *, is_tied: bool) -> Weights:
    looked_up = ("positions",) if is_tied else ("positions", "embedding")
    read: dict[str, int] = {}
    total = 0
    for name, kind, num_bytes in sizes:
        total += num_bytes
        if name not in looked_up:
            read[kind] = read.get(kind, 0) + num_bytes
    return Weights(read=read, total=total)


def _packed_kind(packing: Packing) -> str:
    return f"int{packing.bits}"


def _dense_kind(itemsize: int) -> str:
    return "float32" if itemsize == 4 else "16 bits"
