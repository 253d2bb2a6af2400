"""Packed native folders are mapped in place; damaged and forged ones are refused in a sentence."""

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

import bluejay
from bluejay.checkpoints.convert import convert
from bluejay.checkpoints.model_files import open_model
from bluejay.checkpoints.native import MANIFEST, WEIGHTS, seal, verify
from bluejay.core.errors import CheckpointError
from bluejay.runs.loading import load_params
from checkpoints.refusals import refused
from packed_models import write_llama_gguf

NAME = "blocks.0.attention.out"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_llama_gguf(tmp_path / "a.gguf")
    convert(tmp_path / "a.gguf", tmp_path / "native", to="native")
    assert verify(tmp_path / "native") == []
    return tmp_path / "native"


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change config.json and seal the folder anew, as a forger would."""
    document = json.loads((folder / "config.json").read_text())
    edit(document)
    (folder / "config.json").write_text(json.dumps(document))
    seal(folder)


def edit_tensors(folder: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = dict(load_file(folder / WEIGHTS))
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)
    seal(folder)


def test_loaded_leaves_lie_in_the_map(folder: Path) -> None:
    model = bluejay.load(folder)
    for name in (NAME, "blocks.1.feed_forward.down", "blocks.1.attention.query"):
        stored = model.files.source.read_packed(name)
        _, layer, part, field = name.split(".")
        placed = getattr(getattr(model.runner.params.blocks[int(layer)], part), field)
        pairs = zip(jax.tree.leaves(stored), jax.tree.leaves(placed), strict=True)
        for view, array in pairs:
            assert not view.flags.writeable
            assert array.unsafe_buffer_pointer() == view.ctypes.data
            assert is_in_map(view.ctypes.data, view.nbytes, folder / WEIGHTS)


def is_in_map(address: int, num_bytes: int, path: Path) -> bool:
    lines = Path("/proc/self/maps").read_text().splitlines()
    ranges = [line.split()[0].split("-") for line in lines if line.endswith(str(path))]
    return any(
        int(start, 16) <= address and address + num_bytes <= int(end, 16) for start, end in ranges
    )


def test_versions_say_what_a_reader_must_know(folder: Path, tmp_path: Path) -> None:
    assert json.loads((folder / MANIFEST).read_text())["format_version"] == 2
    packing = json.loads((folder / "config.json").read_text())["packing"]
    assert (packing["version"], packing["block"], packing["group"]) == (1, 32, 16)
    assert packing["tensors"][NAME] == "int4_offset"
    convert(folder, tmp_path / "wide", to="native", dtype="float32")
    assert json.loads((tmp_path / "wide" / MANIFEST).read_text())["format_version"] == 1
    assert "packing" not in json.loads((tmp_path / "wide" / "config.json").read_text())


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda d: d["packing"].update(version=2), "packing has version 2, but only 1"),
        (lambda d: d["packing"].update(version=True), "packing has version True, but only 1"),
        (lambda d: d["packing"].update(block=64), "packing has block 64, but only 32"),
        (lambda d: d["packing"].pop("group"), "packing has group None, but only 16"),
        (lambda d: d.update(packing=[1]), "'packing' is not an object"),
        (lambda d: d.pop("packing"), r"attention\.out is missing"),
        (lambda d: d["packing"].update(tensors={}), "0 packed tensors, but the manifest"),
        (lambda d: d["packing"]["tensors"].update({NAME: "int3"}), "as 'int3', but known are int8"),
        (lambda d: d["packing"]["tensors"].update({NAME: 4}), "as 4, but known are int8"),
        (lambda d: d["packing"]["tensors"].update({NAME: "int8"}), r"\.codes should have shape"),
        (lambda d: d["packing"]["tensors"].update({NAME: "int4"}), r"offsets' is not expected"),
        (lambda d: d["packing"]["tensors"].update({"\x1b[2J": "int8"}), "which this decoder has"),
        (lambda d: d["packing"]["tensors"].update({"final_norm.scale": "int8"}), "final_norm"),
        (lambda d: d["decoder"].update(vocab_size=280), r"embedding\.codes should have shape"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    folder: Path, edit: Callable[[dict[str, Any]], object], message: str
) -> None:
    edit_config(folder, edit)
    with pytest.raises(CheckpointError, match=message):
        open_model(folder)
    refused(open_model, folder)


def wrong_dtype(tensors: dict[str, np.ndarray]) -> None:
    tensors[f"{NAME}.scales"] = tensors[f"{NAME}.scales"].view(np.int16)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t.pop(f"{NAME}.scales"), r"attention\.out\.scales is missing"),
        (lambda t: t.update({f"{NAME}.codes": t[f"{NAME}.codes"][:1]}), "should have shape"),
        (wrong_dtype, r"scales should hold float16, but holds I16"),
    ],
)
def test_parts_that_do_not_fit_are_refused(
    folder: Path, edit: Callable[[dict[str, np.ndarray]], object], message: str
) -> None:
    edit_tensors(folder, edit)
    with pytest.raises(CheckpointError, match=message):
        open_model(folder)
    refused(open_model, folder)


@pytest.mark.parametrize("part", ["scales", "offsets"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(folder: Path, part: str, value: float) -> None:
    def edit(tensors: dict[str, np.ndarray]) -> None:
        tensors[f"{NAME}.{part}"] = tensors[f"{NAME}.{part}"].copy()
        tensors[f"{NAME}.{part}"][1, 1, 5] = value

    edit_tensors(folder, edit)
    with pytest.raises(CheckpointError, match=f"1 of the {part} of '{NAME}' are not finite"):
        load_params(open_model(folder))
    refused(lambda path: load_params(open_model(path)), folder)


def test_a_truncated_file_is_refused_at_once(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-64])
    assert "bytes, but its manifest says" in refused(open_model, folder)
    seal(folder)
    assert "cut short" in refused(open_model, folder)


hostile = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@hostile
@given(st.data())
def test_no_forged_byte_reads_beyond_the_map(folder: Path, data: st.DataObject) -> None:
    """Any byte of the head of the weights or of config.json: refused, or every read is inside."""
    path = folder / data.draw(st.sampled_from([WEIGHTS, "config.json"]))
    whole = path.read_bytes()
    size = len(whole)
    if path.name == WEIGHTS:
        size = 8 + int.from_bytes(whole[:8], "little")
    forged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        forged[data.draw(st.integers(0, size - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(forged)
    try:
        seal_quietly(folder)
        with suppress(CheckpointError):
            read_everything(folder)
    finally:
        path.write_bytes(whole)
        seal(folder)


def read_everything(folder: Path) -> None:
    source = open_model(folder).source
    for name, info in source.tensors.items():
        if info.packing is not None:
            for part in jax.tree.leaves(source.read_packed(name)):
                part.max()


def seal_quietly(folder: Path) -> None:
    """A forger does not mind that config.json cannot be parsed."""
    try:
        seal(folder)
    except CheckpointError:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["files"]["config.json"]["bytes"] = (folder / "config.json").stat().st_size
        (folder / MANIFEST).write_text(json.dumps(manifest))
