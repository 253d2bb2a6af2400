"""Published tensors become ours and go back bit for bit; mismatches come all together."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from bluejay.checkpoints.convert import convert
from bluejay.checkpoints.families import family_of, read_config, write_config
from bluejay.checkpoints.model_files import open_model
from bluejay.checkpoints.native import verify
from bluejay.checkpoints.tables import TABLES
from bluejay.core.errors import CheckpointError, UsageError
from bluejay.model.presets import PRESETS, preset
from bluejay.vocab.gpt2 import gptj_tokenizer
from golden_files import CASES, load_case, write_hf_folder


@pytest.mark.parametrize("name", CASES)
def test_hugging_face_to_native_and_back_is_bit_exact(name: str, tmp_path: Path) -> None:
    original = write_hf_folder(load_case(name), tmp_path / "hf")
    there = convert(original, tmp_path / "native", to="native")
    back = convert(tmp_path / "native", tmp_path / "again", to="hf")
    before = load_file(original / "model.safetensors")
    after = load_file(tmp_path / "again" / "model.safetensors")
    assert after.keys() == before.keys()
    for key, value in before.items():
        assert after[key].dtype == value.dtype
        assert after[key].tobytes() == value.tobytes(), key
    assert there.num_equal == there.num_tensors == back.num_equal
    assert there.largest_rounding == back.largest_rounding == 0.0
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["model_type"] == load_case(name).config["model_type"]


@pytest.mark.parametrize("name", CASES)
def test_the_exported_config_says_what_the_original_said(name: str) -> None:
    case = load_case(name)
    family, config = read_config(case.config, where=name)
    exported = write_config(family, config)
    for key, value in exported.items():
        # Dropout belongs to training, and this decoder has none.
        if case.config.get(key) is not None and not key.endswith("_pdrop"):
            assert value == case.config[key], key
    assert family_of(config) == {"codegen": "gptj"}.get(family, family)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_published_form(name: str) -> None:
    config = preset(name)
    family = family_of(config)
    assert read_config(write_config(family, config), where=name) == (family, config)


def test_a_model_saved_without_its_head_class_lacks_the_prefix(tmp_path: Path) -> None:
    """As the published gpt2 has it: `wte.weight`, and buffers that carry nothing."""
    case = load_case("gpt2")
    folder = write_hf_folder(case, tmp_path / "hf")
    bare = {key.removeprefix("transformer."): value for key, value in case.tensors.items()}
    bare["h.0.attn.bias"] = np.ones((1, 1, 64, 64), np.float32)
    save_file(bare, folder / "model.safetensors")
    expected = open_model(write_hf_folder(case, tmp_path / "plain"))
    found = open_model(folder)
    for key in expected.source.tensors:
        assert np.array_equal(found.source.read(key), expected.source.read(key))


def test_old_gptj_buffers_are_ignored(tmp_path: Path) -> None:
    case = load_case("gptj-rotary-full-head")
    folder = write_hf_folder(case, tmp_path / "hf")
    tensors = dict(case.tensors)
    for layer in range(3):
        tensors[f"transformer.h.{layer}.attn.bias"] = np.ones((1, 1, 160, 160), np.float32)
        tensors[f"transformer.h.{layer}.attn.masked_bias"] = np.float32([-1e9])
    save_file(tensors, folder / "model.safetensors")
    assert len(open_model(folder).source.tensors) == len(case.tensors)


def test_all_mismatches_are_reported_together(tmp_path: Path) -> None:
    case = load_case("gptj-rotary-32-of-64")
    folder = write_hf_folder(case, tmp_path / "hf")
    tensors = dict(case.tensors)
    del tensors["transformer.h.1.mlp.fc_in.bias"]
    tensors["transformer.ln_f.bias"] = np.zeros(7, np.float32)
    tensors["transformer.h.0.attn.gate.weight"] = np.zeros((2, 2), np.float32)
    tensors["lm_head.bias"] = np.zeros(96, np.int64)
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError) as refusal:
        open_model(folder)
    message = str(refusal.value)
    assert "\n" not in message
    for part in (
        "4 tensors do not match",
        "transformer.h.1.mlp.fc_in.bias is missing",
        "transformer.ln_f.bias should have shape (256,), but has (7,)",
        "'transformer.h.0.attn.gate.weight' is not expected",
        "lm_head.bias should hold floating-point numbers, but holds I64",
    ):
        assert part in message, message


def test_tables_name_every_tensor_of_every_preset_once() -> None:
    from bluejay.checkpoints.conversion import published_tensors

    for name, config in PRESETS.items():
        table = TABLES[family_of(config)]
        names = [item.name for item in published_tensors(table, config)]
        assert len(set(names)) == len(names), name
    assert len(published_tensors(TABLES["gptj"], preset("gptj-6b"))) == 285


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "bert"}, "model_type 'bert' is not one of gptj, codegen"),
        ({"n_layer": 10**9}, "num_layers must lie between 1 and 16777216, not 1000000000"),
        ({"n_layer": "6"}, "n_layer is '6', but must be a whole number"),
        ({"n_head": -4}, "n_head is -4, but must be a whole number of at least 1"),
        ({"n_head": 7}, "embedding of 256 does not divide into 7 heads"),
        ({"rotary_dim": 33}, "even number of at least 2, not 33"),
        ({"rotary_dim": 66}, "rotary_dim 66 is larger than head_dim 64"),
        ({"layer_norm_epsilon": float("nan")}, "layer_norm_epsilon is nan, but must be a finite"),
        ({"activation_function": "relu"}, "activation_function is 'relu', but must be one of"),
        ({"n_embd": None}, "the key 'n_embd' is missing"),
    ],
)
def test_configs_that_cannot_work_are_refused(
    change: dict[str, object], message: str, tmp_path: Path
) -> None:
    case = load_case("gptj-rotary-32-of-64")
    folder = write_hf_folder(case, tmp_path / "hf")
    (folder / "config.json").write_text(json.dumps({**case.config, **change}))
    with pytest.raises(CheckpointError, match=message) as refusal:
        open_model(folder)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("case_name", "change", "message"),
    [
        ("llama-grouped-tied", {"rope_scaling": {"type": "linear", "factor": 2}}, "rope_type"),
        ("llama-grouped-tied", {"hidden_act": "gelu"}, "hidden_act is 'gelu', but must be 'silu'"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
    ],
)
def test_what_is_not_computed_is_refused(
    case_name: str, change: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read_config({**load_case(case_name).config, **change}, where="config.json")


def test_code_named_by_a_config_is_never_touched(tmp_path: Path) -> None:
    """transformers would import it with trust_remote_code; we have nothing that could."""
    case = load_case("gptj-rotary-32-of-64")
    folder = write_hf_folder(case, tmp_path / "hf")
    trap = tmp_path / "ran"
    (folder / "modeling_evil.py").write_text(f"open({str(trap)!r}, 'w')")
    config = {**case.config, "auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}
    (folder / "config.json").write_text(json.dumps(config))
    open_model(folder)
    assert not trap.exists()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize("to", ["hf", "native"])
def test_narrower_dtypes_round_once_and_the_report_says_by_how_much(
    dtype: str, to: str, tmp_path: Path
) -> None:
    case = load_case("gptj-rotary-full-head")
    for key, value in case.tensors.items():  # the golden values lie on a coarse grid
        noise = np.random.default_rng(0).normal(size=value.shape)
        case.tensors[key] = (value + 0.01 * noise).astype(np.float32)
    source = write_hf_folder(case, tmp_path / "hf")
    report = convert(source, tmp_path / "out", to=to, dtype=dtype)
    assert report.dtypes == {dtype: report.num_tensors}
    bound = {"bfloat16": 2**-8, "float16": 2**-11, "float32": 0.0}[dtype]
    assert report.largest_rounding <= bound
    assert (report.largest_rounding > 0) == (dtype != "float32")
    assert report.num_parameters == sum(value.size for value in case.tensors.values())


def test_values_that_a_dtype_cannot_hold_are_refused_and_nothing_is_left(tmp_path: Path) -> None:
    case = load_case("gptj-rotary-full-head")
    case.tensors["lm_head.bias"][3] = 7e4
    source = write_hf_folder(case, tmp_path / "hf")
    with pytest.raises(CheckpointError, match="head_bias holds 70000, which float16 cannot"):
        convert(source, tmp_path / "out", to="native", dtype="float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["hf"]


def test_an_occupied_destination_is_refused(tmp_path: Path) -> None:
    source = write_hf_folder(load_case("gptj-rotary-full-head"), tmp_path / "hf")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists already"):
        convert(source, tmp_path / "out", to="native")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
    with pytest.raises(UsageError, match="dtype must be one of"):
        convert(source, tmp_path / "new", to="hf", dtype="int3")


def test_a_tokenizer_travels_and_must_fit_the_model(tmp_path: Path) -> None:
    case = load_case("gptj-rotary-full-head")
    source = write_hf_folder(case, tmp_path / "hf")
    gptj_tokenizer().save(source)
    with pytest.raises(CheckpointError, match="50400 ids but the model only 96 embedding rows"):
        open_model(source).tokenizer()


class TestDamage:
    """A native folder that is not what its manifest says."""

    @pytest.fixture
    def native(self, tmp_path: Path) -> Path:
        source = write_hf_folder(load_case("gptj-rotary-full-head"), tmp_path / "hf")
        convert(source, tmp_path / "native", to="native")
        assert verify(tmp_path / "native") == []
        return tmp_path / "native"

    def test_every_flipped_bit_is_detected(self, native: Path) -> None:
        path = native / "model.safetensors"
        whole = bytearray(path.read_bytes())
        rng = np.random.default_rng(0)
        for place in rng.integers(0, len(whole), 32):
            whole[place] ^= 1 << int(rng.integers(8))
            path.write_bytes(whole)
            assert verify(native) == [
                "model.safetensors is damaged: its sha256 differs from the manifest's"
            ]
            whole = bytearray(whole)

    def test_truncated_missing_and_foreign_files_are_refused_at_once(self, native: Path) -> None:
        weights = native / "model.safetensors"
        whole = weights.read_bytes()
        weights.write_bytes(whole[:-1])
        with pytest.raises(CheckpointError, match="bytes, but its manifest says"):
            open_model(native)
        weights.unlink()
        with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
            open_model(native)

    def test_a_manifest_of_another_version_is_named(self, native: Path) -> None:
        path = native / "MANIFEST.json"
        document = json.loads(path.read_text())
        path.write_text(json.dumps({**document, "format_version": 99}))
        with pytest.raises(CheckpointError, match="version 99, but only bluejay-checkpoint"):
            open_model(native)

    def test_a_manifest_cannot_point_elsewhere(self, native: Path) -> None:
        path = native / "MANIFEST.json"
        document = json.loads(path.read_text())
        document["files"]["../secret"] = {"bytes": 1, "sha256": "0"}
        path.write_text(json.dumps(document))
        with pytest.raises(CheckpointError, match="not a plain file"):
            open_model(native)

    def test_an_edited_config_names_the_tensors(self, native: Path) -> None:
        path = native / "config.json"
        text = path.read_text().replace('"num_layers": 3', '"num_layers": 2')
        path.write_text(text)
        with pytest.raises(CheckpointError, match=r"blocks\.2\.attention.* is not expected"):
            open_model(native)
