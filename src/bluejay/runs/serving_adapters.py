"""Fine-tuned weights that are served beside a model, each under a name of its own."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import jax

from bluejay.checkpoints.locate import locate
from bluejay.checkpoints.model_files import ModelFiles, open_model
from bluejay.core.errors import UsageError
from bluejay.model.config import DecoderConfig
from bluejay.model.params import DecoderParams
from bluejay.runs.language_model import LanguageModel
from bluejay.runs.loading import load_params


def load_adapters(
    model: LanguageModel,
    places: Mapping[str, str],
    *,
    dtype: str | None = None,
    on_adapter: Callable[[str], None] = lambda name: None,
) -> dict[str, DecoderParams]:
    """Parameters by name, of full checkpoints with the model's own shapes and number formats.

    Raises UsageError for one that does not fit, and what loading a model raises.
    """
    found = {}
    for name, place in places.items():
        on_adapter(name)
        files = open_model(locate(place))
        _require_same_decoder(name, files, model)
        params = load_params(files, dtype=dtype, mesh=model.runner.mesh)
        _require_same_leaves(name, params, model.runner.params)
        found[name] = params
    return found


def _require_same_decoder(name: str, files: ModelFiles, model: LanguageModel) -> None:
    for field, value in vars(_shape_of(model.config)).items():
        other = getattr(_shape_of(files.config), field)
        if other != value:
            raise UsageError(
                f"The adapter {name!r} ({files.path}) has {field} {other}, and the model"
                f" {value}: an adapter is a checkpoint of the same decoder."
            )
    tokenizer = files.tokenizer()
    if tokenizer is not None and not tokenizer.has_same_tokens(model.tokenizer):
        raise UsageError(
            f"The adapter {name!r} ({files.path}) has other tokens than the model: an adapter is a"
            " checkpoint of the same decoder with the same tokenizer."
        )


def _shape_of(config: DecoderConfig) -> DecoderConfig:
    """Without the context's length, which is a promise and no shape where positions rotate."""
    return replace(config, context_length=1) if config.position.kind != "learned" else config


def _require_same_leaves(name: str, params: DecoderParams, own: DecoderParams) -> None:
    """Programs are compiled once for all, so that leaves must agree in kind and type too."""
    ours, theirs = (
        (jax.tree.structure(tree), [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)])
        for tree in (own, params)
    )
    if ours != theirs:
        raise UsageError(
            f"The adapter {name!r} keeps its weights in other number formats than the model:"
            " convert or quantize one of the two as the other, or give --dtype."
        )
