"""Match a file's tensors with a decoder's by table, report every mismatch, read one at a time."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.gguf_blocks import PACKABLE, pack_blocks
from bluejay.checkpoints.gguf_file import GgufFile
from bluejay.checkpoints.layouts import LAYOUTS, Layout
from bluejay.checkpoints.packing import Packing, may_be_packed, require_finite
from bluejay.checkpoints.refusal import quoted
from bluejay.checkpoints.tables import Rule, Table
from bluejay.checkpoints.tensor_source import TensorInfo, TensorSource
from bluejay.core.errors import CheckpointError
from bluejay.model.config import DecoderConfig
from bluejay.model.params import named_leaves
from bluejay.model.specs import ParamSpec, decoder_specs
from bluejay.nn.quantized import QuantizedWeight

# More mismatches than this are counted, not listed: the message must stay readable.
_MOST_MISMATCHES = 12


@dataclass(frozen=True, kw_only=True)
class PublishedTensor:
    """One published tensor of this very decoder: its name, shape, and native parts."""

    name: str
    native: tuple[str, ...]
    specs: tuple[ParamSpec, ...]
    layout: Layout
    shape: tuple[int, ...]


def published_tensors(table: Table, config: DecoderConfig) -> list[PublishedTensor]:
    """Every tensor that a file of this family holds for that config, in the table's order."""
    specs = named_leaves(decoder_specs(config))
    found = [item for rule in table.rules for item in _expanded(rule, specs, config)]
    covered = [name for item in found for name in item.native]
    assert sorted(covered) == sorted(specs), sorted(set(specs) ^ set(covered))
    return found


def _expanded(
    rule: Rule, specs: Mapping[str, ParamSpec], config: DecoderConfig
) -> Iterator[PublishedTensor]:
    layers = range(config.num_layers) if "{layer}" in rule.published else range(1)
    layout = LAYOUTS[rule.layout]
    for layer in layers:
        native = tuple(name.format(layer=layer) for name in rule.native)
        if any(name not in specs for name in native):
            continue  # a part that this variant does not have, such as a bias
        own = tuple(specs[name] for name in native)
        yield PublishedTensor(
            name=rule.published.format(layer=layer),
            native=native,
            specs=own,
            layout=layout,
            shape=layout.shape(own, config),
        )


class ConvertedTensors:
    """A decoder's tensors by native name, read from a published file through its table.

    Raises CheckpointError that lists all missing, unexpected and wrongly shaped tensors together.
    """

    def __init__(
        self, source: TensorSource, *, table: Table, config: DecoderConfig, where: str
    ) -> None:
        self._source, self._config, self._where = source, config, where
        wanted = published_tensors(table, config)
        strip = _missing_prefix(source, table, wanted)
        self._published = {item.name.removeprefix(strip): item for item in wanted}
        self._check(table, where)
        self._places = {
            native: (name, part)
            for name, item in self._published.items()
            for part, native in enumerate(item.native)
        }

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """By native name: the native shape, and dtype and bytes as the file has them."""
        found = {}
        for native, (name, part) in self._places.items():
            info, item = self._source.tensors[name], self._published[name]
            packing, spec = self._packing(native), item.specs[part]
            found[native] = TensorInfo(
                name=native,
                shape=spec.shape,
                dtype=info.dtype,
                stored=info.stored,
                num_bytes=packing.num_bytes(spec)
                if packing
                else info.num_bytes // len(item.native),
                packing=packing.name if packing else None,
            )
        return found

    def read(self, native: str) -> NDArray[Any]:
        """The native tensor: a view of the file where its layout allows, else an array."""
        name, part = self._places[native]
        item = self._published[name]
        whole = self._source.read(name)
        return item.layout.take(whole, part, item.specs, self._config)

    def read_packed(self, native: str) -> QuantizedWeight:
        """The native tensor as a leaf of fresh arrays, its codes and scales those of the file."""
        (name, part), packing = self._places[native], self._packing(native)
        item, rows_of = self._published[name], self._published[name].layout.rows
        assert isinstance(self._source, GgufFile)
        assert packing is not None
        assert rows_of is not None
        blocks = self._source.read_blocks(name)
        order = rows_of(len(blocks), self._config)
        moved = blocks if np.all(order[1:] > order[:-1]) else blocks[order]
        parts = pack_blocks(moved, packing)
        require_finite(parts, native, where=self._where)
        return packing.leaf(parts, item.specs[part])

    def close(self) -> None:
        self._source.close()

    def _packing(self, native: str) -> Packing | None:
        """How the tensor can be packed as it is stored: GGUF's blocks of 32, rows kept whole."""
        name, part = self._places[native]
        item = self._published[name]
        if not isinstance(self._source, GgufFile) or item.layout.rows is None:
            return None
        if not may_be_packed(native, item.specs[part]):
            return None
        return PACKABLE.get(self._source.tensors[name].stored)

    def _check(self, table: Table, where: str) -> None:
        have, want = self._source.tensors, self._published
        ignored = [re.compile(pattern) for pattern in table.ignored]
        if self._config.variant.tied_head:
            # transformers ignores a stored head of a tied model too.
            ignored.append(re.compile(r"^(lm_head|embed_out|output)\.weight$"))
        problems = [f"{name} is missing" for name in want if name not in have]
        problems += [
            f"{quoted(name)} is not expected"
            for name in have
            if name not in want and not any(pattern.search(name) for pattern in ignored)
        ]
        for name, item in want.items():
            if name in have:
                problems += _differences(have[name], item)
        if problems:
            raise CheckpointError(f"{where}: {_listed(problems)}")


def _differences(info: TensorInfo, item: PublishedTensor) -> list[str]:
    found = []
    if info.shape != item.shape:
        found.append(f"{info.name} should have shape {item.shape}, but has {info.shape}")
    if not np.issubdtype(info.dtype, np.floating) and info.dtype.name not in ("bfloat16",):
        found.append(f"{info.name} should hold floating-point numbers, but holds {info.stored}")
    return found


def _missing_prefix(source: TensorSource, table: Table, wanted: list[PublishedTensor]) -> str:
    """The prefix that this file's names lack: it was saved from the model without its head."""
    embedding = next(item.name for item in wanted if item.native == ("embedding",))
    bare = embedding.removeprefix(table.prefix)
    lacks = embedding not in source.tensors and bare in source.tensors
    return table.prefix if lacks else ""


def _listed(problems: list[str]) -> str:
    shown = "; ".join(problems[:_MOST_MISMATCHES])
    rest = len(problems) - _MOST_MISMATCHES
    more = f"; and {rest} more" if rest > 0 else ""
    noun = "tensor does" if len(problems) == 1 else "tensors do"
    return f"{len(problems)} {noun} not match the configuration: {shown}{more}."
