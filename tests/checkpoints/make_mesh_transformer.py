"""Write checkpoints as the original GPT-J code did, from the description of its format.

The tree {opt_state, params, step} is flattened with sorted keys, each shard gets its part of every
leaf, and the leaves of a shard go unnamed into 16 files, as evenly as possible, earlier files
getting one more. bfloat16 arrives on disk as NumPy's two opaque bytes.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
PIECES = 16
ROOT = "causal_transformer_shard/~/"
# Haiku's name of each linear of a layer, in the order the original class creates them.
LINEARS = ("q", "v", "k", "out", "fc_in", "fc_out")
COLUMNS, ROWS, COPIES, SHARES = "columns", "rows", "copies", "shares"


def random_tensors(
    *, layers: int, width: int, vocabulary: int, dtype: type[Any], seed: int = 0
) -> dict[str, Array]:
    """A whole GPT-J under the names that the reader gives; numbers that sum without rounding."""
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Array:
        return (rng.integers(-64, 64, shape) / 16).astype(dtype)

    tensors = {
        "embedding/w": draw(vocabulary, width),
        "head/w": draw(width, vocabulary),
        "head/b": draw(vocabulary),
        "final_norm/scale": draw(width),
        "final_norm/offset": draw(width),
    }
    for i in range(layers):
        tensors |= {f"layer_{i}/{name}/w": draw(width, width) for name in ("q", "k", "v", "out")}
        tensors |= {
            f"layer_{i}/fc_in/w": draw(width, 4 * width),
            f"layer_{i}/fc_in/b": draw(4 * width),
            f"layer_{i}/fc_out/w": draw(4 * width, width),
            f"layer_{i}/fc_out/b": draw(width),
            f"layer_{i}/norm/scale": draw(width),
            f"layer_{i}/norm/offset": draw(width),
        }
    return tensors


def shard_parameters(
    tensors: dict[str, Array], num_shards: int, *, embedding_bias: Array
) -> list[dict[str, dict[str, Array]]]:
    """Haiku's two-level dict of parameters for each shard.

    Norms of all shards but the first are filled with garbage, as dead copies may be; the two
    biases that every shard adds are split into unequal shares with the given sum.
    """
    shards: list[dict[str, dict[str, Array]]] = [{} for _ in range(num_shards)]

    def put(module: str, parameter: str, whole: Array, split: str) -> None:
        for i, part in enumerate(_split(whole, num_shards, split)):
            shards[i].setdefault(ROOT + module, {})[parameter] = part

    bias = embedding_bias.astype(np.float32)
    embedding = (tensors["embedding/w"].astype(np.float32) - bias).astype(embedding_bias.dtype)
    put("embedding_shard/~/linear", "w", embedding, ROWS)
    put("embedding_shard/~/linear", "b", embedding_bias, SHARES)
    put("projection_shard/~/linear", "w", tensors["head/w"], COLUMNS)
    put("projection_shard/~/linear", "b", tensors["head/b"], ROWS)
    for leaf in ("scale", "offset"):
        norm = "projection_shard/~/replicated_layer_norm"
        put(norm, leaf, tensors[f"final_norm/{leaf}"], COPIES)
    for layer in {name.split("/")[0] for name in tensors if name.startswith("layer_")}:
        for i, name in enumerate(LINEARS):
            module = f"{layer}/~/linear" + (f"_{i}" if i else "")
            split = ROWS if name in ("out", "fc_out") else COLUMNS
            put(module, "w", tensors[f"{layer}/{name}/w"], split)
        put(f"{layer}/~/linear_4", "b", tensors[f"{layer}/fc_in/b"], ROWS)
        put(f"{layer}/~/linear_5", "b", tensors[f"{layer}/fc_out/b"], SHARES)
        for leaf in ("scale", "offset"):
            norm = f"{layer}/~/replicated_layer_norm"
            put(norm, leaf, tensors[f"{layer}/norm/{leaf}"], COPIES)
    return shards


def write_checkpoint(
    folder: Path,
    tensors: dict[str, Array],
    num_shards: int,
    *,
    embedding_bias: Array,
    is_full: bool = False,
    step: int = 383500,
) -> Path:
    """`folder/step_N/shard_I/J.npz`; a full checkpoint has Adam's moments in float32 before."""
    target = folder / f"step_{step}"
    shards = shard_parameters(tensors, num_shards, embedding_bias=embedding_bias)
    for i, parameters in enumerate(shards):
        state: dict[str, object] = {"params": parameters, "step": np.array(step)}
        if is_full:
            moments = _map(lambda x: np.full(x.shape, -7, np.float32), parameters)
            adam = (np.array(step, np.int32), moments, moments)
            state["opt_state"] = ((), (), adam, (), (), (np.array(step, np.int32),))
        _write_shard(target / f"shard_{i}", list(_flatten(state)))
    return target


def _split(whole: Array, count: int, split: str) -> list[Array]:
    if split in (ROWS, COLUMNS):
        return np.split(whole, count, axis=int(split == COLUMNS))
    if split == COPIES:
        return [whole, *[np.full_like(whole, 99)] * (count - 1)]
    shares = [np.full_like(whole, (i % 3 - 1) / 4) for i in range(count - 1)]
    rest = whole.astype(np.float32) - sum((s.astype(np.float32) for s in shares), np.float32(0))
    return [*shares, rest.astype(whole.dtype)]


def _flatten(tree: Any) -> Iterator[Array]:
    """Leaves of dicts in the order of their sorted keys, of tuples as they stand."""
    if isinstance(tree, np.ndarray):
        yield tree
    else:
        children = [tree[key] for key in sorted(tree)] if isinstance(tree, dict) else tree
        for child in children:
            yield from _flatten(child)


def _map(function: Any, tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _map(function, value) for key, value in tree.items()}
    return function(tree)


def _write_shard(folder: Path, leaves: list[Array]) -> None:
    folder.mkdir(parents=True)
    quotient, rest = divmod(len(leaves), PIECES)
    start = 0
    for i in range(PIECES):
        end = start + quotient + (i < rest)
        stored = [x.view("V2") if x.dtype == ml_dtypes.bfloat16 else x for x in leaves[start:end]]
        np.savez(folder / f"{i}.npz", *stored)
        start = end
