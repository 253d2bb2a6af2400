"""A training state as named arrays on the host, and back."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path
from numpy.typing import NDArray

from bluejay.model.params import (
    BlockParams,
    DecoderParams,
    map_named,
    named_leaves,
    stack_blocks,
    unstack_blocks,
)
from bluejay.training.step import TrainState

NamedArrays = dict[str, NDArray[Any]]


def params_to_arrays(params: DecoderParams) -> NamedArrays:
    """The unstacked parameters by dotted path, as checkpoints hold them."""
    host = jax.tree.map(np.asarray, params)
    return named_leaves(_unstacked_on_host(host))


def arrays_to_params(specs: DecoderParams, arrays: NamedArrays) -> DecoderParams:
    """The parameters on the device, blocks stacked."""
    unstacked = map_named(lambda path, _: jax.device_put(arrays[path]), specs)
    return stack_blocks(unstacked)


def state_to_arrays(state: TrainState) -> NamedArrays:
    """Everything but the parameters, by the path of each leaf."""
    leaves, _ = tree_flatten_with_path(replace(state, params=None))
    return {_name(path): np.asarray(leaf) for path, leaf in leaves}


def arrays_to_state(like: TrainState, arrays: NamedArrays, params: DecoderParams) -> TrainState:
    """The inverse of `state_to_arrays`; `like` has the structure, of arrays or of shapes."""
    leaves, structure = tree_flatten_with_path(replace(like, params=None))
    values = [jax.device_put(arrays[_name(path)]) for path, _ in leaves]
    state: TrainState = jax.tree.unflatten(structure, values)
    return replace(state, params=params)


def state_shapes(like: TrainState) -> dict[str, Any]:
    """Shape and dtype of everything but the parameters, by path."""
    leaves, _ = tree_flatten_with_path(replace(like, params=None))
    return {_name(path): leaf for path, leaf in leaves}


def _name(path: Any) -> str:
    return keystr(path, simple=True, separator=".")


def _unstacked_on_host(params: DecoderParams) -> DecoderParams:
    # Slices of host arrays are views; on the device every one would be a program.
    return unstack_blocks(params) if isinstance(params.blocks, BlockParams) else params
