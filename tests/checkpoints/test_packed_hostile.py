"""Forged and damaged packed folders: refused in one sentence, or loaded and able to write."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bluejay
from bluejay.checkpoints.convert import convert
from bluejay.checkpoints.model_files import open_model
from bluejay.checkpoints.native import MANIFEST, WEIGHTS, seal
from bluejay.core.errors import CheckpointError
from checkpoints.refusals import refused
from packed_models import write_llama_gguf

CODES, SCALES = "blocks.0.attention.out.codes", "blocks.0.attention.out.scales"
Header = dict[str, Any]


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A packed folder that no test changes."""
    folder = tmp_path_factory.mktemp("packed")
    write_llama_gguf(folder / "a.gguf")
    convert(folder / "a.gguf", folder / "native", to="native")
    return folder / "native"


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("forged")


def copied(sealed: Path, scratch: Path) -> Path:
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(sealed, scratch)
    return scratch


def edit_header(folder: Path, edit: Callable[[Header], object]) -> None:
    """Change what the weights' header says and leave its tensors' bytes; seal as a forger would."""
    whole = (folder / WEIGHTS).read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:end])
    edit(header)
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + whole[end:])
    seal(folder)


def moved_behind_the_end(header: Header) -> None:
    begin, end = header[CODES]["data_offsets"]
    last = max(entry["data_offsets"][1] for entry in header.values() if "data_offsets" in entry)
    header[CODES]["data_offsets"] = [last, last + end - begin]


def two_in_one_place(header: Header) -> None:
    begin, end = header[SCALES]["data_offsets"]
    header["blocks.1.attention.out.scales"]["data_offsets"] = [begin, end]


def longer_than_the_file(header: Header) -> None:
    header[CODES]["shape"][0] *= 1000
    begin, end = header[CODES]["data_offsets"]
    header[CODES]["data_offsets"] = [begin, begin + 1000 * (end - begin)]


def product_beyond_64_bits(header: Header) -> None:
    """Counted in 64 bits the product would be 0, what an empty range holds."""
    header[CODES] |= {"shape": [2**32, 2**31, 2], "data_offsets": [0, 0]}


def product_that_wraps_to_the_truth(header: Header) -> None:
    """Modulo 2**64 these sizes make the number of bytes that is there."""
    groups, blocks, size = header[CODES]["shape"]
    header[CODES]["shape"] = [groups, blocks, size + 2**64 // (groups * blocks)]


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (moved_behind_the_end, "leaves a gap before"),
        (two_in_one_place, "leaves a gap before|overlaps the tensor before it"),
        (longer_than_the_file, "overlaps the tensor before it|cut short"),
        (product_beyond_64_bits, "a shape that is not a list of sizes"),
        (product_that_wraps_to_the_truth, "a shape that is not a list of sizes"),
        (lambda h: h[CODES].update(data_offsets=[2**62, 2**62 + 64]), "fill its data_offsets"),
        (lambda h: h[CODES].update(data_offsets=[-64, 0]), "data_offsets that are not a range"),
        (lambda h: h[CODES].update(data_offsets=[64, 0]), "data_offsets that are not a range"),
        (lambda h: h[CODES]["shape"].reverse(), r"should have shape \(4, 2, 256\)"),
        (lambda h: h[CODES]["shape"].append(1), r"should have shape \(4, 2, 256\)"),
        (lambda h: h[SCALES].update(dtype="BF16"), "should hold float16, but holds BF16"),
        (lambda h: h.pop(SCALES), "leaves a gap before"),
    ],
)
def test_a_forged_header_is_refused(
    sealed: Path, scratch: Path, edit: Callable[[Header], object], message: str
) -> None:
    folder = copied(sealed, scratch)
    edit_header(folder, edit)
    with pytest.raises(CheckpointError, match=message):
        open_model(folder)
    refused(open_model, folder)


@pytest.mark.parametrize("claimed", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_a_forged_length_of_the_header_is_refused(
    sealed: Path, scratch: Path, claimed: int
) -> None:
    folder = copied(sealed, scratch)
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(claimed.to_bytes(8, "little") + whole[8:])
    seal(folder)
    refused(open_model, folder)


@pytest.mark.parametrize("field", ["num_layers", "embed_dim", "vocab_size", "feed_forward_dim"])
@pytest.mark.parametrize("size", [0, -1, 3, 2**31, 2**62, 2**64 + 2, 10**30, 1.5, "2", None])
def test_a_forged_size_of_the_decoder_is_refused(
    sealed: Path, scratch: Path, field: str, size: object
) -> None:
    """Within a second: nothing is made that is as large as the claim."""
    folder = copied(sealed, scratch)
    document = json.loads((folder / "config.json").read_text())
    document["decoder"][field] = size
    (folder / "config.json").write_text(json.dumps(document))
    seal(folder)
    refused(open_model, folder)


def damage(content: bytes, draw: Callable[..., Any]) -> bytes:
    """Cut off, or with some bytes changed, mostly near the beginning, where the sizes stand."""
    if draw(st.integers(0, 6)) == 0:
        return content[: draw(st.integers(0, len(content) - 1))]
    forged = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        reach = draw(st.sampled_from([len(content), min(len(content), 4000)]))
        forged[draw(st.integers(0, reach - 1))] = draw(st.integers(0, 255))
    return bytes(forged)


@settings(max_examples=120)
@given(data=st.data())
def test_any_damage_is_refused_or_does_no_harm(
    sealed: Path, scratch: Path, data: st.DataObject
) -> None:
    """With and without a seal that fits: the model writes, or one sentence says why not."""
    folder = copied(sealed, scratch)
    path = folder / data.draw(st.sampled_from([WEIGHTS, WEIGHTS, "config.json", MANIFEST]))
    path.write_bytes(damage(path.read_bytes(), data.draw))
    sentence = ""
    try:
        if path.name != MANIFEST and data.draw(st.booleans()):
            seal(folder)
        bluejay.load(folder).generate("How", max_tokens=2, temperature=0.0)
    except CheckpointError as error:
        sentence = str(error)
    assert sentence == "" or (sentence.isprintable() and len(sentence) < 2000), sentence
