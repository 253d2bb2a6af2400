"""Read the checkpoints of the original GPT-J code: `step_N/shard_I/J.npz`.

Facts, read from kingoflolz/mesh-transformer-jax (checkpoint.py, layers.py, to_hf_weights.py):

- A training state {opt_state, params, step} is flattened with sorted keys, and each of the tensor
  parallel shards writes its part of every leaf, unnamed, as consecutive runs over 16 files.
  A slim checkpoint has no opt_state. So parameters are counted from the end.
- Modules sort as text, so layer_10 comes before layer_2; within one, `b` before `w` and `offset`
  before `scale`. The six linears of a layer are q, v, k (in this order), out, fc_in, fc_out.
- q, k, v, fc_in and the head are split by columns (outputs), out and fc_out by rows (inputs), the
  embedding by rows (vocabulary). Each shard adds its own bias after a row-split product, so those
  biases are summed. Norms are replicated, and only shard 0's copy is ever used.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bluejay.checkpoints.npz_file import NpzFile, StoredArray
from bluejay.checkpoints.refusal import quoted, refusal
from bluejay.checkpoints.shard_index import weights_file
from bluejay.checkpoints.tensor_source import TensorInfo

MAX_SHARDS = 1024
MAX_PIECES = 1024


class Merge(Enum):
    """How the shards of a leaf make the whole tensor."""

    FIRST = "shard 0 holds it"
    SUM = "shards add up"
    ROWS = "shards follow each other along axis 0"
    COLUMNS = "shards follow each other along axis 1"


# In the order of the flattened tree.
_EMBEDDING = (("embedding/b", Merge.SUM), ("embedding/w", Merge.ROWS))
_LAYER = (
    ("q/w", Merge.COLUMNS),
    ("v/w", Merge.COLUMNS),
    ("k/w", Merge.COLUMNS),
    ("out/w", Merge.ROWS),
    ("fc_in/b", Merge.ROWS),
    ("fc_in/w", Merge.COLUMNS),
    ("fc_out/b", Merge.SUM),
    ("fc_out/w", Merge.ROWS),
    ("norm/offset", Merge.FIRST),
    ("norm/scale", Merge.FIRST),
)
_HEAD = (
    ("head/b", Merge.ROWS),
    ("head/w", Merge.COLUMNS),
    ("final_norm/offset", Merge.FIRST),
    ("final_norm/scale", Merge.FIRST),
)


@dataclass(frozen=True, kw_only=True)
class _Leaf:
    index: int
    merge: Merge


class MeshTransformerFolder:
    """One `step_N` folder (a TensorSource), any number of shards, slim or with optimizer state.

    Tensors are whole, matrices of shape (in, out):

        embedding/w                           (vocabulary, width), its bias added to every row
        layer_I/norm/{scale,offset}           (width,)
        layer_I/{q,k,v,out}/w                 (width, width)
        layer_I/fc_in/{w,b}                   (width, inner), (inner,)
        layer_I/fc_out/{w,b}                  (inner, width), (width,)
        final_norm/{scale,offset}             (width,)
        head/{w,b}                            (width, vocabulary), (vocabulary,)

    `embedding/w` and `fc_out/b` are sums over shards and come as float32, which holds sums of a
    few bfloat16 numbers exactly; everything else has the stored dtype. `step` is the last leaf.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._shards: list[_Shard] = []
        try:
            self._shards.extend(_Shard(path) for path in _numbered(folder, "shard_", MAX_SHARDS))
            self._require_equal_shards()
            self._leaves = self._name_leaves()
            self._tensors = {info.name: info for info in self._describe()}
            self.step = int(self.read_leaf(0, self.num_leaves - 1))
        except BaseException:
            self.close()
            raise

    @property
    def num_shards(self) -> int:
        return len(self._shards)

    @property
    def num_leaves(self) -> int:
        return len(self._shards[0].leaves)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return MappingProxyType(self._tensors)

    def leaf(self, index: int) -> StoredArray:
        """Shape and dtype of a leaf in one shard, the same in all."""
        return self._shards[0].leaves[index]

    def read_leaf(self, shard: int, index: int) -> NDArray[Any]:
        """One shard's part of a leaf, as stored."""
        return self._shards[shard].read(index)

    def read(self, name: str) -> NDArray[Any]:
        if name not in self._tensors:
            raise refusal(self.folder, f"there is no tensor named {quoted(name)}")
        if name != "embedding/w":
            return self._merged(name)
        return self._add_rows(self._merged("embedding/b"))

    def close(self) -> None:
        for shard in self._shards:
            shard.close()

    def _add_rows(self, bias: NDArray[Any]) -> NDArray[np.float32]:
        """The embedding in float32 with its bias, filled shard by shard."""
        whole = np.empty(self._tensors["embedding/w"].shape, np.float32)
        for part, rows in zip(self._parts("embedding/w"), self._split(whole), strict=True):
            rows[...] = part
            rows += bias
        return whole

    def _split(self, whole: NDArray[Any]) -> list[NDArray[Any]]:
        return np.split(whole, self.num_shards)

    def _parts(self, name: str) -> Iterator[NDArray[Any]]:
        index = self._leaves[name].index
        return (self.read_leaf(shard, index) for shard in range(self.num_shards))

    def _merged(self, name: str) -> NDArray[Any]:
        merge, parts = self._leaves[name].merge, self._parts(name)
        match merge:
            case Merge.FIRST:
                return np.ascontiguousarray(next(parts))
            case Merge.SUM:
                total = np.zeros(self.leaf(self._leaves[name].index).shape, np.float32)
                for part in parts:
                    total += part.astype(np.float32)
                return total
            case Merge.ROWS | Merge.COLUMNS:
                if self.num_shards == 1:
                    return np.ascontiguousarray(next(parts))
                return np.concatenate(list(parts), axis=int(merge is Merge.COLUMNS))

    def _require_equal_shards(self) -> None:
        first = [(leaf.shape, leaf.dtype) for leaf in self._shards[0].leaves]
        for shard in self._shards[1:]:
            if [(leaf.shape, leaf.dtype) for leaf in shard.leaves] != first:
                raise refusal(shard.folder, "its arrays have other shapes than those of shard_0")

    def _name_leaves(self) -> dict[str, _Leaf]:
        """Names for the leaves, found from the end by shape, because opt_state comes first."""
        shapes = [leaf.shape for leaf in self._shards[0].leaves]
        end = len(shapes) - 1
        has_step = end >= 0 and shapes[end] == () and self.leaf(end).dtype.kind in "iu"
        if not has_step or end < len(_HEAD) or not _is_head(shapes[end - 4 : end]):
            raise self._foreign(len(shapes))
        width = shapes[end - 1][0]
        names = _numbered_names(_HEAD, end - len(_HEAD))
        position, groups = end - len(_HEAD), 0
        while position >= len(_LAYER) and _is_layer(
            shapes[position - len(_LAYER) : position], width, self.num_shards
        ):
            position, groups = position - len(_LAYER), groups + 1
        if position < 2 or not _is_embedding(shapes[position - 2 : position], width) or not groups:
            raise self._foreign(len(shapes))
        names |= _numbered_names(_EMBEDDING, position - len(_EMBEDDING))
        for layer in sorted(range(groups), key=str):
            names |= _numbered_names(_LAYER, position, prefix=f"layer_{layer}/")
            position += len(_LAYER)
        return names

    def _describe(self) -> Iterator[TensorInfo]:
        for name, leaf in self._leaves.items():
            if name == "embedding/b":
                continue
            stored = self.leaf(leaf.index)
            is_sum = leaf.merge is Merge.SUM or name == "embedding/w"
            dtype = np.dtype(np.float32) if is_sum else stored.dtype
            shape = list(stored.shape)
            if leaf.merge in (Merge.ROWS, Merge.COLUMNS):
                shape[int(leaf.merge is Merge.COLUMNS)] *= self.num_shards
            yield TensorInfo(
                name=name,
                shape=tuple(shape),
                dtype=dtype,
                stored=f"npz {stored.dtype.name} x {self.num_shards}",
                num_bytes=int(np.prod(shape, dtype=np.int64)) * dtype.itemsize,
            )

    def _foreign(self, count: int) -> Exception:
        return refusal(
            self.folder,
            f"its {count} arrays are not those of a GPT-J (rotary positions, layer norm); other "
            "models of the original code are not supported",
        )


class _Shard:
    """The leaves of one shard in order, over its numbered files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: list[NpzFile] = []
        self._places: list[tuple[NpzFile, str]] = []
        try:
            for path in _numbered(folder, "", MAX_PIECES, suffix=".npz"):
                self._files.append(NpzFile(path))
                self._places.extend(_in_order(self._files[-1], path))
        except BaseException:
            self.close()
            raise
        self.leaves = [file.arrays[name] for file, name in self._places]

    def read(self, index: int) -> NDArray[Any]:
        file, name = self._places[index]
        return file.read(name)

    def close(self) -> None:
        for file in self._files:
            file.close()


def _in_order(file: NpzFile, path: Path) -> list[tuple[NpzFile, str]]:
    """The unnamed arrays of a piece: arr_0, arr_1 and so on, without gaps."""
    expected = [f"arr_{i}" for i in range(len(file.arrays))]
    if set(expected) != set(file.arrays):
        raise refusal(path, "its arrays are named, so it is not a piece of a GPT-J checkpoint")
    return [(file, name) for name in expected]


def _numbered(folder: Path, prefix: str, most: int, *, suffix: str = "") -> list[Path]:
    """PREFIX0SUFFIX, PREFIX1SUFFIX, ... in `folder`, none missing in between."""
    try:
        found = {p.name for p in folder.iterdir() if p.name.startswith(prefix)}
    except OSError as error:
        raise refusal(folder, f"cannot be listed ({error.strerror})") from error
    count = sum(name[len(prefix) :].removesuffix(suffix).isdecimal() for name in found)
    if count > most:
        raise refusal(folder, f"{count:,} parts, more than the {most:,} allowed")
    names = [f"{prefix}{i}{suffix}" for i in range(count)]
    missing = [name for name in names if name not in found]
    if missing or not names:
        raise refusal(folder, f"{missing[0] if missing else prefix + '0' + suffix} is missing")
    if suffix:
        return [weights_file(folder, name) for name in names]
    return [_plain_folder(folder / name) for name in names]


def _plain_folder(folder: Path) -> Path:
    if folder.is_symlink() or not folder.is_dir():
        raise refusal(folder, "is not a folder of its own")
    return folder


def _numbered_names(
    names: tuple[tuple[str, Merge], ...], start: int, *, prefix: str = ""
) -> dict[str, _Leaf]:
    return {
        prefix + name: _Leaf(index=start + i, merge=merge) for i, (name, merge) in enumerate(names)
    }


def _is_head(shapes: list[tuple[int, ...]]) -> bool:
    bias, weight, offset, scale = shapes
    return len(scale) == 1 and offset == scale and len(bias) == 1 and weight == scale + bias


def _is_layer(shapes: list[tuple[int, ...]], width: int, num_shards: int) -> bool:
    split = width // num_shards
    inner = shapes[4][0] if len(shapes[4]) == 1 else -1
    columns, rows = (width, split), (split, width)
    attention = [columns, columns, columns, rows]
    feed_forward = [(inner,), (width, inner), (width,), (inner, width)]
    return shapes == [*attention, *feed_forward, (width,), (width,)]


def _is_embedding(shapes: list[tuple[int, ...]], width: int) -> bool:
    bias, weight = shapes
    return bias == (width,) and len(weight) == 2 and weight[1] == width
