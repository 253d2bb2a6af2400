"""Quantize a stored model, one tensor or one layer in memory at a time, and measure the loss."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.model_files import ModelFiles, open_model
from bluejay.checkpoints.native import native_writer, seal, write_config_file
from bluejay.checkpoints.packed_writer import PackedWriter
from bluejay.checkpoints.packing import Packing
from bluejay.checkpoints.quantization import packing_plan, quantize_tensor
from bluejay.core.errors import CheckpointError
from bluejay.core.files import new_folder
from bluejay.model.decoder import embed
from bluejay.model.params import BlockParams, DecoderParams, NormParams, map_named, named_leaves
from bluejay.model.specs import ParamSpec, decoder_specs, parameter_count
from bluejay.nn.error_compensation import Compensation, compensation_of
from bluejay.nn.quantized import QuantizedWeight
from bluejay.runs.layer_stream import (
    Comparison,
    Window,
    compare_heads,
    names_of,
    observe_layer,
    run_one_layer,
)
from bluejay.runs.loading import on_device
from bluejay.runs.quantization_texts import QuantizationTexts, quantization_texts
from bluejay.vocab.tokenizer import Tokenizer

_FLOAT32 = np.dtype(np.float32)

OnProgress = Callable[[str, int, int], None]
"""Called with what is being done and the bytes written so far and in all."""


@dataclass(frozen=True, kw_only=True)
class Loss:
    """Before and after on held-out text. Bits are per byte of it, `divergence` is
    KL(before || after) in nats per token, `agreement` the share of positions with the same best
    id."""

    bits_per_byte_before: float
    bits_per_byte_after: float
    divergence: float
    agreement: float
    num_tokens: int


@dataclass(frozen=True, kw_only=True)
class QuantizationReport:
    """What was written; sizes in bytes are those of the weights, `loss` None without text."""

    destination: Path
    num_parameters: int
    num_bytes_before: int
    num_bytes_after: int
    packed: Mapping[str, int]
    calibration_tokens: int
    loss: Loss | None
    seconds: float

    @property
    def bits_per_weight(self) -> float:
        """Over all weights, those that stay wider included."""
        return 8 * self.num_bytes_after / self.num_parameters


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How to quantize: `bits` 8 or 4, and for 4 whether blocks have an offset, which is 5 bits
    per weight in place of 4.5.

    Symmetric is the default: on bluejay-tiny 4-bit weights cost 0.66 % in bits per byte, with an
    offset 0.58 %, and with a calibration text 0.06 % without a bit more (docs/lab-book.md).
    """

    bits: int
    has_offsets: bool = False
    calibration: str | None = None
    held_out: str | None = None


def quantize(
    source: Path,
    destination: Path,
    how: Quantization,
    *,
    on_progress: OnProgress | None = None,
) -> QuantizationReport:
    """Write `source` with packed weights of 8 or 4 bits as a native folder at `destination`.

    With a calibration text, rounding errors are compensated for what the layers see on it; its
    last tenth is held out and measured on unless there is a held-out text. Needs the memory of one
    tensor, with a text that of one layer. Raises UsageError for other bits, an occupied
    destination, or a model without a tokenizer where a text is given; CheckpointError for a bad
    source; DataError for a text of less than two tokens. Then, and when interrupted, nothing is
    left.
    """
    began = time.monotonic()
    model = open_model(source)
    try:
        plan = packing_plan(model.config, bits=how.bits, has_offsets=how.has_offsets)
        with new_folder(destination) as folder:
            texts = quantization_texts(model, how.calibration, how.held_out)
            job = _Job(model, plan, texts, on_progress)
            job.write(folder)
    finally:
        model.close()
    counts = [packing.name for packing in plan.values()]
    return QuantizationReport(
        destination=destination,
        num_parameters=parameter_count(decoder_specs(model.config)),
        num_bytes_before=model.num_bytes,
        num_bytes_after=job.num_bytes_after,
        packed={name: counts.count(name) for name in dict.fromkeys(counts)},
        calibration_tokens=sum(int(window.is_text.sum()) for window in texts.calibration),
        loss=job.loss(),
        seconds=time.monotonic() - began,
    )


class _Job:
    """One pass over the layers. Three streams run along: calibration through the new layers,
    held-out text through the old and through the new ones."""

    def __init__(
        self,
        model: ModelFiles,
        plan: Mapping[str, Packing],
        texts: QuantizationTexts,
        on_progress: OnProgress | None,
    ) -> None:
        self._model, self._plan, self._config = model, plan, model.config
        self._calibration, self._held_out = texts.calibration, texts.held_out
        self._specs = decoder_specs(model.config)
        self._on_progress, self._activity = on_progress, "Quantizing"
        self._comparison = Comparison()
        self.num_bytes_after = 0
        self._embedding: Any = None
        self._seen: list[jax.Array] = []
        self._before: list[jax.Array] = []
        self._after: list[jax.Array] = []

    def write(self, folder: Path) -> None:
        """Everything a native folder holds."""
        infos = self._model.source.tensors
        tokenizer = self._model.tokenizer()
        write_config_file(
            folder, family=self._model.family, config=self._config, packing=self._plan
        )
        dtypes = {name: info.dtype for name, info in infos.items() if name not in self._plan}
        with native_writer(folder, self._config, dtypes, self._plan) as file:
            self._writer = PackedWriter(file, self._written)
            self._begin()
            for layer in range(self._config.num_layers):
                self._layer(layer)
            self._finish(tokenizer)
        if tokenizer is not None:
            tokenizer.save(folder)
        seal(folder, known={done.path.name: done.sha256 for done in file.written})

    def loss(self) -> Loss | None:
        """Measured while writing."""
        found, held_out = self._comparison, self._held_out
        if held_out is None:
            return None
        bits = math.log(2) * held_out.num_bytes
        return Loss(
            bits_per_byte_before=found.nats_before / bits,
            bits_per_byte_after=found.nats_after / bits,
            divergence=found.divergence / found.num_tokens,
            agreement=found.num_agreeing / found.num_tokens,
            num_tokens=found.num_tokens,
        )

    @property
    def _runs(self) -> bool:
        return bool(self._calibration) or self._held_out is not None

    def _written(self, done: int, total: int) -> None:
        if self._on_progress is not None:
            self._on_progress(self._activity, done, total)

    def _begin(self) -> None:
        """Embed all windows, with the old tables and with the new."""
        old = replace(
            self._specs,
            embedding=self._old("embedding") if self._held_out else None,
            positions=self._old("positions") if self._specs.positions is not None else None,
        )
        new = replace(old, embedding=self._store("embedding", self._specs.embedding))
        if self._specs.head is None:  # tied: the logits need it again
            self._embedding = new.embedding
        if self._specs.positions is not None:
            self._store("positions", self._specs.positions)
        self._seen = [self._embed(new, window) for window in self._calibration]
        if self._held_out is not None:
            self._before = [self._embed(old, window) for window in self._held_out.windows]
            self._after = [self._embed(new, window) for window in self._held_out.windows]

    def _embed(self, tables: DecoderParams, window: Window) -> jax.Array:
        ids = jnp.asarray(window.ids[None, :-1])
        positions = jnp.arange(ids.shape[1], dtype=jnp.int32)[None, :]
        return embed(tables, ids, positions)

    def _layer(self, layer: int) -> None:
        """Observe the old layer, write the new one, and let the streams through both."""
        old = self._block(layer, lambda name, _: self._old(name)) if self._runs else None
        known: dict[str, Compensation] = {}
        if self._calibration:
            assert old is not None
            known = self._known(old)
        new = self._block(
            layer, lambda name, spec: self._store(name, spec, known.get(_within(name)))
        )
        if not self._runs:
            return
        self._seen = [run_one_layer(new, x, config=self._config) for x in self._seen]
        self._before = [run_one_layer(old, x, config=self._config) for x in self._before]
        self._after = [run_one_layer(new, x, config=self._config) for x in self._after]

    def _known(self, old: BlockParams) -> dict[str, Compensation]:
        """By path within the layer; weights that share their input share what is known of it."""
        sums: dict[str, NDArray[np.float32]] = {}
        for x in self._seen:
            for key, moments in observe_layer(old, x, config=self._config).items():
                sums[key] = np.asarray(moments) + sums.get(key, np.float32(0))
        found: dict[str, Compensation] = {}
        for key, total in sums.items():
            compensation = compensation_of(total / np.float32(len(self._seen)))
            found |= dict.fromkeys(names_of(key), compensation)
        return found

    def _finish(self, tokenizer: Tokenizer | None) -> None:
        """Write what stands behind the layers, and compare the logits."""
        behind = ("final_norm.scale", "final_norm.bias", "head", "head_bias")
        specs = named_leaves(self._specs)
        own = {name: spec for name, spec in specs.items() if name in behind}
        if self._held_out is None:
            for name, spec in own.items():
                self._store(name, spec)
            return
        assert tokenizer is not None
        self._activity = "Comparing"
        old = self._tail({name: self._old(name) for name in own})
        new = self._tail({name: self._store(name, spec) for name, spec in own.items()})
        if self._specs.head is None:  # tied
            old = replace(old, embedding=self._old("embedding"))
            new = replace(new, embedding=self._embedding)
        allowed = jnp.asarray(tokenizer.sampleable_mask(self._config.vocab_size))
        streams = zip(self._held_out.windows, self._before, self._after, strict=True)
        for window, before, after in streams:
            targets, counts = jnp.asarray(window.ids[1:]), jnp.asarray(window.is_text)
            sums = compare_heads(
                (old, before), (new, after), targets, counts, allowed, config=self._config
            )
            self._comparison = self._comparison.plus(sums)

    def _tail(self, leaves: Mapping[str, Any]) -> DecoderParams:
        return DecoderParams(
            embedding=None,
            blocks=(),
            final_norm=NormParams(
                scale=leaves["final_norm.scale"], bias=leaves.get("final_norm.bias")
            ),
            head=leaves.get("head"),
            head_bias=leaves.get("head_bias"),
        )

    def _block(self, layer: int, leaf: Callable[[str, ParamSpec], Any]) -> BlockParams:
        """The layer's tree with leaf(path, spec) in place of each spec."""

        def at(path: str, spec: ParamSpec) -> Any:
            if not path.startswith("blocks.0."):
                return spec
            return leaf(f"blocks.{layer}.{_within(path)}", spec)

        assert isinstance(self._specs.blocks, tuple)
        blocks = map_named(at, replace(self._specs, blocks=(self._specs.blocks[layer],))).blocks
        assert isinstance(blocks, tuple)
        return blocks[0]

    def _old(self, name: str) -> jax.Array:
        return on_device(self._model.source.read(name), _FLOAT32)

    def _store(self, name: str, spec: ParamSpec, known: Compensation | None = None) -> Any:
        """Write one tensor as planned; gives it as the new layers use it, if they run at all."""
        leaf = self._leaf(name, spec, known)
        self._writer.write(name, leaf)
        packed = isinstance(leaf, QuantizedWeight)
        parts = jax.tree.leaves(leaf)
        self.num_bytes_after += sum(part.nbytes for part in parts)
        if not self._runs:
            return None
        return jax.device_put(leaf) if packed else on_device(np.asarray(leaf), _FLOAT32)

    def _leaf(
        self, name: str, spec: ParamSpec, known: Compensation | None
    ) -> QuantizedWeight | NDArray[Any]:
        values = self._model.source.read(name)
        packing = self._plan.get(name)
        if packing is None:
            return values
        try:
            return quantize_tensor(name, values, spec, packing, known=known)
        except CheckpointError as error:
            raise CheckpointError(f"{self._model.path}: {error}") from error


def _within(path: str) -> str:
    """`blocks.3.attention.query` without its layer."""
    return path.split(".", 2)[-1]
