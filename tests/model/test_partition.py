"""Heads, units and ids for several devices: how many there are, and what is refused."""

from dataclasses import replace

import pytest

from bluejay.core.errors import UsageError
from bluejay.model.config import DecoderConfig
from bluejay.model.partition import partition
from bluejay.model.presets import PRESETS

SMOLLM2, GPTJ = PRESETS["smollm2-135m-instruct"], PRESETS["gptj-6b"]
# One key/value head for all: multi-query attention.
SHARED = replace(GPTJ, num_kv_heads=1)
# Llama-2-70B's heads.
LARGE = replace(SMOLLM2, num_heads=64, num_kv_heads=8, head_dim=128)


@pytest.mark.parametrize(
    ("config", "num_devices", "heads", "kv_heads", "copies"),
    [
        (GPTJ, 8, 16, 16, 1),
        (SMOLLM2, 3, 9, 3, 1),
        (SMOLLM2, 2, 12, 4, 1),
        (SMOLLM2, 4, 12, 4, 1),
        (SMOLLM2, 9, 9, 9, 3),
        (SHARED, 4, 16, 4, 4),
        (LARGE, 16, 64, 16, 2),
    ],
)
def test_every_device_has_as_many_heads_as_any_other(
    config: DecoderConfig, num_devices: int, heads: int, kv_heads: int, copies: int
) -> None:
    found = partition(config, num_devices)
    assert (found.config.num_heads, found.config.num_kv_heads) == (heads, kv_heads)
    assert found.kv_copies == copies


def test_ids_are_filled_up_on_the_devices_alone() -> None:
    found = partition(PRESETS["gpt2"], 4)
    assert found.config.vocab_size == 50_257
    assert found.specs.embedding.shape == (50_260, 768)


@pytest.mark.parametrize(("config", "num_devices", "fitting"), [(SMOLLM2, 7, 5), (GPTJ, 40, 31)])
def test_zeros_on_half_of_the_devices_are_refused_with_what_works(
    config: DecoderConfig, num_devices: int, fitting: int
) -> None:
    with pytest.raises(
        UsageError, match=f"too few for {num_devices} devices: choose model={fitting}."
    ):
        partition(config, num_devices)
    partition(config, fitting)
