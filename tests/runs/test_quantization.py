"""Quantizing whole models: what is written, what is measured, and what is left on failure."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import bluejay
from bluejay.checkpoints.locate import locate
from bluejay.checkpoints.model_files import open_model
from bluejay.checkpoints.native import WEIGHTS, seal, verify
from bluejay.core.errors import CheckpointError, DataError, UsageError
from bluejay.model.config import DecoderConfig
from bluejay.model.decoder import norm
from bluejay.model.params import BlockParams, named_leaves
from bluejay.nn.quantized import Int4, Int8, dequantize
from bluejay.runs import quantization_texts
from bluejay.runs.language_model import LanguageModel
from bluejay.runs.layer_stream import names_of, observe_layer, windows_of
from bluejay.runs.loading import load_params
from bluejay.runs.quantization import Quantization, quantize
from bluejay.runs.quantization_texts import read_text
from golden_files import load_case, write_hf_folder
from packed_models import write_llama_gguf
from text_models import TEXT, write_text_model

TESTS = Path(__file__).parents[1]
PASSAGE = TESTS / "golden" / "smollm2" / "passage.txt"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("small") / "model")


def bits_per_byte(lm: LanguageModel, text: str) -> float:
    ids = lm.prompt_ids(text)
    assert len(ids) <= lm.config.context_length
    nats = -lm.score_ids(ids[:1], ids[1:])[0]
    return nats / math.log(2) / len(lm.tokenizer.decode_bytes(ids[1:]))


def test_what_is_measured_is_what_the_written_model_does(small: Path, tmp_path: Path) -> None:
    """The streams of single layers against the runner, on the very folder that was written; both
    with float32 keys and values, for what is measured is the weights' loss."""
    text = TEXT[0][:60]
    how = Quantization(bits=4, calibration="".join(TEXT), held_out=text)
    report = quantize(small, tmp_path / "q", how)
    assert verify(tmp_path / "q") == []
    assert report.loss is not None
    before = bluejay.load(small, dtype="float32")
    after = bluejay.load(tmp_path / "q", cache_dtype="float32")
    assert report.loss.bits_per_byte_before == pytest.approx(bits_per_byte(before, text), rel=1e-4)
    assert report.loss.bits_per_byte_after == pytest.approx(bits_per_byte(after, text), rel=1e-4)
    assert report.loss.num_tokens == len(after.prompt_ids(text)) - 1
    assert 0 < report.loss.divergence < 0.5


def test_matrices_are_packed_and_the_rest_is_untouched(small: Path, tmp_path: Path) -> None:
    report = quantize(small, tmp_path / "q", Quantization(bits=4, has_offsets=True))
    params = load_params(open_model(tmp_path / "q"))
    old = named_leaves(load_params(open_model(small)))
    for name, leaf in named_leaves(params).items():
        if name in ("embedding", "head"):
            assert isinstance(leaf, Int8)
        elif old[name].ndim > 1:
            assert isinstance(leaf, Int4)
            assert leaf.offsets is not None
        else:
            np.testing.assert_array_equal(leaf, old[name])
            continue
        error = np.asarray(dequantize(leaf)) - np.asarray(old[name])
        assert np.abs(error).max() < 0.2 * np.abs(np.asarray(old[name])).max()
    assert report.packed == {"int8": 2, "int4_offset": 12}
    assert report.loss is None
    stored = sum(info.num_bytes for info in open_model(tmp_path / "q").source.tensors.values())
    assert report.bits_per_weight == 8 * stored / report.num_parameters


@pytest.mark.parametrize(
    ("bits", "most"), [pytest.param(8, 0.001, id="int8"), pytest.param(4, 0.02, id="int4")]
)
def test_the_bundled_model_loses_little(
    bits: int, most: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 bits are calibrated on another kind of English than the novel that is measured on."""
    monkeypatch.setattr(quantization_texts, "CALIBRATION_TOKENS", 4096)
    calibration = (TESTS.parent / "docs" / "lab-book.md").read_text() if bits == 4 else None
    how = Quantization(bits=bits, calibration=calibration, held_out=PASSAGE.read_text())
    loss = quantize(locate("bluejay-tiny"), tmp_path / "q", how).loss
    assert loss is not None
    share = loss.bits_per_byte_after / loss.bits_per_byte_before - 1
    print(f"{bits} bits: {share:+.2%}, KL {loss.divergence:.4f}, same best {loss.agreement:.1%}")
    assert share <= most
    assert loss.divergence < (0.002 if bits == 8 else 0.03)
    assert loss.agreement > (0.95 if bits == 8 else 0.85)


def test_a_quantized_gguf_is_quantized_again(tmp_path: Path) -> None:
    write_llama_gguf(tmp_path / "a.gguf")
    report = quantize(tmp_path / "a.gguf", tmp_path / "q", Quantization(bits=8))
    assert report.packed == {"int8": 15}
    old, new = open_model(tmp_path / "a.gguf").source, open_model(tmp_path / "q").source
    for name in ("embedding", "blocks.1.feed_forward.up"):
        gap = np.abs(new.read(name) - old.read(name)).max()
        assert gap < 0.01 * np.abs(old.read(name)).max()


@pytest.mark.parametrize("case_name", ["gptj-rotary-full-head", "llama-grouped-tied", "gpt2"])
def test_every_matrix_of_a_layer_is_observed(case_name: str, tmp_path: Path) -> None:
    model = open_model(write_hf_folder(load_case(case_name), tmp_path / "hf"))
    layer, x = first_layer_and_stream(load_params(model), model.config)
    moments = observe_layer(layer, x, config=model.config)
    observed = [name for key in moments for name in names_of(key)]
    matrices = [name for name, leaf in named_leaves(layer).items() if "norm" not in name]
    matrices = [name for name in matrices if not name.endswith("bias")]
    assert sorted(observed) == sorted(matrices)
    normed = norm(layer.attention_norm, x, config=model.config)[0]
    key = next(key for key in moments if "attention.query" in names_of(key))
    assert {"attention.key", "attention.value"} <= set(names_of(key))
    expected = np.asarray(normed, np.float64).T @ np.asarray(normed, np.float64)
    np.testing.assert_allclose(moments[key][0], expected, rtol=0, atol=1e-4 * expected.max())


def first_layer_and_stream(params: Any, config: DecoderConfig) -> tuple[BlockParams, jax.Array]:
    drawn = np.random.default_rng(0).normal(size=(1, 12, config.embed_dim))
    return params.blocks[0], jnp.asarray(drawn, jnp.float32)


def test_windows_cover_a_text_once() -> None:
    ids = list(range(100, 123))
    found = windows_of(ids, size=5, most=1000, spread=False)
    counted = [int(i) for w in found for i in w.ids[1:][w.is_text]]
    assert counted == ids[1:]
    assert all(len(w.ids) == 6 for w in found)
    spread = windows_of(ids, size=5, most=10, spread=True)
    assert [int(w.ids[0]) for w in spread] == [100, 120]


class TestRefusals:
    """Nothing is left at the destination, and nothing beside it."""

    def left(self, folder: Path) -> list[str]:
        return sorted(path.name for path in folder.iterdir())

    def test_an_interruption(self, small: Path, tmp_path: Path) -> None:
        def interrupt(_: str, done: int, total: int) -> None:
            if done > total // 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            quantize(small, tmp_path / "q", Quantization(bits=8), on_progress=interrupt)
        assert self.left(tmp_path) == []

    def test_other_bits_and_an_occupied_place(self, small: Path, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="to 8 or 4 bits, not to 3"):
            quantize(small, tmp_path / "q", Quantization(bits=3))
        (tmp_path / "q").mkdir()
        (tmp_path / "q" / "thesis.txt").write_text("mine")
        with pytest.raises(UsageError, match="exists already"):
            quantize(small, tmp_path / "q", Quantization(bits=4))
        assert self.left(tmp_path / "q") == ["thesis.txt"]

    @pytest.mark.parametrize(
        ("value", "message"), [(np.nan, "no finite numbers"), (1e9, "no 16-bit scale reaches")]
    )
    def test_values_that_no_code_holds(
        self, small: Path, tmp_path: Path, value: float, message: str
    ) -> None:
        source = tmp_path / "source"
        source.mkdir()
        for path in small.iterdir():
            (source / path.name).write_bytes(path.read_bytes())
        tensors = {name: array.copy() for name, array in load_file(source / WEIGHTS).items()}
        tensors["blocks.1.feed_forward.up"][3, 5] = value
        save_file(tensors, source / WEIGHTS)
        seal(source)
        with pytest.raises(CheckpointError, match=rf"blocks\.1\.feed_forward\.up.*{message}"):
            quantize(source, tmp_path / "q", Quantization(bits=8))
        assert self.left(tmp_path) == ["source"]

    def test_texts(self, small: Path, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="calibration text has 0 tokens"):
            quantize(
                small, tmp_path / "q", Quantization(bits=8, calibration="", held_out="the sea")
            )
        mute = write_hf_folder(load_case("gptj-rotary-full-head"), tmp_path / "mute")
        with pytest.raises(UsageError, match="has no tokenizer, which a text needs"):
            quantize(mute, tmp_path / "q", Quantization(bits=8, held_out="the sea"))
        assert self.left(tmp_path) == ["mute"]

    def test_text_files(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"no such file or directory.*give a text file"):
            read_text(tmp_path / "nowhere.txt")
        (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(DataError, match="is not UTF-8 text"):
            read_text(tmp_path / "bytes")


def test_the_manifest_says_that_it_is_packed(small: Path, tmp_path: Path) -> None:
    quantize(small, tmp_path / "q", Quantization(bits=8))
    assert json.loads((tmp_path / "q" / "MANIFEST.json").read_text())["format_version"] == 2
    model = open_model(tmp_path / "q")
    assert model.is_quantized
    assert model.tokenizer() is not None
