"""GGUF's blocks become packed leaves that dequantize to the very bits of the published package."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluejay.checkpoints.convert import convert
from bluejay.checkpoints.model_files import ModelFiles, open_model
from bluejay.core.errors import CheckpointError
from bluejay.model.decoder import forward
from bluejay.nn import contract as contract_module
from bluejay.nn.quantized import Int4, Int8, QuantizedWeight, dequantize
from bluejay.runs.loading import load_params
from packed_models import HEAD, HEADS, LAYERS, MATRICES, WIDTH, unpermuted, write_llama_gguf

NATIVE = {
    "attn_q": "attention.query",
    "attn_k": "attention.key",
    "attn_v": "attention.value",
    "attn_output": "attention.out",
    "ffn_gate": "feed_forward.gate",
    "ffn_down": "feed_forward.down",
}
KINDS = {"Q8_0": "int8", "Q4_0": "int4", "Q4_1": "int4_offset"}


def assert_bit_exact(found: QuantizedWeight, expected: np.ndarray) -> None:
    for leaf in (found, jax.tree.map(jnp.asarray, found)):
        values = np.asarray(dequantize(leaf))
        assert values.shape == found.shape
        assert values.tobytes() == expected.astype(np.float32).tobytes()


def test_every_packable_tensor_is_bit_exact(tmp_path: Path) -> None:
    values = write_llama_gguf(tmp_path / "a.gguf", embedding="Q8_0", head="Q4_0")
    source = open_model(tmp_path / "a.gguf").source
    for layer in range(LAYERS):
        for published, native in NATIVE.items():
            name = f"blocks.{layer}.{native}"
            expected = values[f"blk.{layer}.{published}.weight"]
            if published in ("attn_q", "attn_k"):
                expected = unpermuted(expected)
            info, leaf = source.tensors[name], source.read_packed(name)
            assert info.packing == KINDS[MATRICES[published][2]]
            assert info.num_bytes == sum(part.nbytes for part in jax.tree.leaves(leaf))
            assert_bit_exact(leaf, expected)
    assert_bit_exact(source.read_packed("embedding"), values["token_embd.weight"])
    assert_bit_exact(source.read_packed("head"), values["output.weight"])
    out = source.read_packed("blocks.0.attention.out")
    assert (out.shape, out.num_inputs) == ((WIDTH, HEADS, HEAD), 2)


def test_other_blocks_and_norms_are_not_packed(tmp_path: Path) -> None:
    values = write_llama_gguf(tmp_path / "a.gguf")
    model = open_model(tmp_path / "a.gguf")
    info = model.source.tensors["blocks.0.feed_forward.up"]
    assert (info.stored, info.packing) == ("Q5_0", None)
    params = load_params(model)
    np.testing.assert_array_equal(params.blocks[0].feed_forward.up, values["blk.0.ffn_up.weight"])
    assert params.final_norm.scale.dtype == np.float32


def logits_of(model: ModelFiles, dtype: str | None = None) -> np.ndarray:
    ids = jnp.arange(6, dtype=jnp.int32)[None, :] * 7 + 1
    # A function of its own each time: a trace is kept by function, whatever is patched since.
    run = jax.jit(lambda params: forward(params, ids, config=model.config))
    return np.asarray(run(load_params(model, dtype=dtype)))


def test_loading_keeps_leaves_packed_and_a_dtype_unpacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_llama_gguf(tmp_path / "a.gguf")
    model = open_model(tmp_path / "a.gguf")
    assert model.is_quantized
    params = load_params(model)
    assert isinstance(params.embedding, Int8)
    assert isinstance(params.blocks[0].attention.query, Int4)
    wide = logits_of(model, "float32")
    assert isinstance(load_params(model, dtype="float32").embedding, jax.Array)
    natively = logits_of(model)
    assert np.std(natively - wide) < 0.03 * np.std(wide)  # activations are rounded to 8 bits
    monkeypatch.setattr(contract_module, "multiplies_quantized", lambda: False)
    np.testing.assert_allclose(logits_of(model), wide, rtol=0, atol=1e-4 * np.std(wide))


def test_a_packed_native_folder_has_the_same_codes_and_scales(tmp_path: Path) -> None:
    write_llama_gguf(tmp_path / "a.gguf")
    report = convert(tmp_path / "a.gguf", tmp_path / "native", to="native")
    assert report.num_equal == report.num_tensors
    assert report.dtypes == {"int8": 3, "int4": 4, "int4_offset": 6, "float32": 7}
    before, after = open_model(tmp_path / "a.gguf").source, open_model(tmp_path / "native").source
    for name, info in before.tensors.items():
        assert after.tensors[name].packing == info.packing
        if info.packing:
            pairs = zip(
                jax.tree.leaves(before.read_packed(name)),
                jax.tree.leaves(after.read_packed(name)),
                strict=True,
            )
            assert all(old.tobytes() == new.tobytes() for old, new in pairs)
    wide = convert(tmp_path / "native", tmp_path / "wide", to="native", dtype="float32")
    assert wide.dtypes == {"float32": 20}
    assert wide.num_equal == 20


def test_a_scale_that_is_no_number_is_refused(tmp_path: Path) -> None:
    write_llama_gguf(tmp_path / "a.gguf")
    data = bytearray((tmp_path / "a.gguf").read_bytes())
    rows = open_model(tmp_path / "a.gguf").source._source.read_blocks("blk.1.attn_v.weight")
    place = bytes(data).index(rows.tobytes())
    data[place : place + 2] = b"\x00\x7e"
    (tmp_path / "a.gguf").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"1 of the scales of 'blocks\.1\.attention\.value'"):
        load_params(open_model(tmp_path / "a.gguf"))


def test_a_real_model_packs_bit_exactly(smollm2_gguf: Path) -> None:
    source = open_model(smollm2_gguf).source
    packed = [name for name, info in source.tensors.items() if info.packing]
    assert len(packed) == 211
    for name in ["embedding", *packed[1:8], *packed[-3:]]:
        assert dequantize(source.read_packed(name)).tobytes() == source.read(name).tobytes()
