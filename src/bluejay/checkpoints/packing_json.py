"""What `config.json` of a native folder says about packed tensors.

{"version": 1, "block": 32, "group": 16, "tensors": {"blocks.0.attention.query": "int4", ...}}
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bluejay.checkpoints.packing import PACKING_VERSION, PACKINGS, Packing, may_be_packed
from bluejay.checkpoints.refusal import quoted, refusal
from bluejay.model.config import DecoderConfig
from bluejay.model.params import named_leaves
from bluejay.model.specs import decoder_specs
from bluejay.nn.quantized import BLOCK, GROUP

_FIXED = {"version": PACKING_VERSION, "block": BLOCK, "group": GROUP}


def packing_document(packing: Mapping[str, Packing]) -> dict[str, Any]:
    """The JSON object for these tensors."""
    return _FIXED | {"tensors": {name: how.name for name, how in packing.items()}}


def read_packing(document: object, config: DecoderConfig, *, path: Path) -> dict[str, Packing]:
    """The packing of each packed tensor; none where the object is absent.

    Raises CheckpointError for another version, block or group, for tensors that the decoder does
    not have or that cannot be packed, and for kinds that do not exist.
    """
    if document is None:
        return {}
    if not isinstance(document, dict) or not isinstance(document.get("tensors"), dict):
        raise refusal(path, "its 'packing' is not an object with 'tensors': quantize again")
    for key, value in _FIXED.items():
        if type(document.get(key)) is not int or document[key] != value:
            raise refusal(
                path,
                f"its packing has {key} {quoted(document.get(key))}, but only {value} can be "
                "read: quantize the model again or update Bluejay",
            )
    specs = named_leaves(decoder_specs(config))
    for name, kind in document["tensors"].items():
        if name not in specs or not may_be_packed(name, specs[name]):
            raise refusal(path, f"it packs {quoted(name)}, which this decoder has not, or not so")
        if not isinstance(kind, str) or kind not in PACKINGS:
            known = ", ".join(PACKINGS)
            raise refusal(path, f"it packs {quoted(name)} as {quoted(kind)}, but known are {known}")
    return {name: PACKINGS[kind] for name, kind in document["tensors"].items()}
