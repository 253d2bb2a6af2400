"""Bytes that a step reads: from a config, from a file's headers, and of what is loaded."""

from pathlib import Path

import pytest

import bluejay
from bluejay.checkpoints.locate import locate
from bluejay.checkpoints.model_files import open_model
from bluejay.kernels.decoding import CACHE_DTYPES
from bluejay.model.cache import empty_cache
from bluejay.model.presets import PRESETS, gptj_config
from bluejay.runs.decode_costs import (
    cache_bytes_per_position,
    config_weights,
    file_weights,
    predicted_step_seconds,
    stored_weights,
)
from bluejay.runs.quantization import Quantization, quantize

TINY = PRESETS["bluejay-tiny"]


@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantized_folder_is_what_its_config_says(bits: int, tmp_path: Path) -> None:
    how = Quantization(bits=bits, calibration=None, held_out=None)
    quantize(locate("bluejay-tiny"), tmp_path / "packed", how)
    files = open_model(tmp_path / "packed")
    expected = config_weights(TINY, f"int{bits}")
    assert file_weights(files) == expected
    loaded = bluejay.load(tmp_path / "packed")
    assert stored_weights(loaded.runner.params) == expected


def test_a_wide_model_is_what_its_config_says() -> None:
    expected = config_weights(TINY, "float32")
    assert file_weights(open_model(locate("bluejay-tiny"))) == expected
    assert stored_weights(bluejay.load("bluejay-tiny").runner.params) == expected


@pytest.mark.parametrize("dtype", CACHE_DTYPES)
def test_a_position_takes_what_the_cache_takes(dtype: str) -> None:
    cache = empty_cache(TINY, batch=1, capacity=128, dtype=dtype)
    arrays = [array for layer in cache.layers for array in vars(layer).values()]
    held = sum(array.nbytes for array in arrays if array is not None)
    assert 128 * cache_bytes_per_position(TINY, dtype) == held


# Bandwidth in GB/s, milliseconds of a step: those of docs/lab-book.md, 2026-11-28, that the
# constants were not fitted to.
@pytest.mark.parametrize(
    ("kind", "bandwidth", "measured"),
    [("int4", 33.4, 7.41), ("int4", 32.4, 7.63), ("int8", 33.6, 12.15), ("int8", 32.7, 12.02)],
)
def test_predictions_of_what_was_measured(kind: str, bandwidth: float, measured: float) -> None:
    config = gptj_config(20, 1024, 16, rotary_dim=32)
    seconds = predicted_step_seconds(
        config_weights(config, kind), config, bandwidth=bandwidth * 1e9
    )
    assert 1e3 * seconds == pytest.approx(measured, rel=0.15)
