"""Configurations that cannot work are refused with the values."""

from dataclasses import replace

import pytest

from bluejay.core.errors import UsageError
from bluejay.model.config import (
    BlockVariant,
    DecoderConfig,
    PositionConfig,
    config_from_json,
    config_to_json,
    even_head_dim,
)
from bluejay.model.presets import PRESETS, gptj_config, preset

SMALL = gptj_config(2, 64, 4, rotary_dim=8, vocab_size=512)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"position": {"rotary_dim": 7}}, "even number of at least 2, not 7"),
        ({"position": {"rotary_dim": 0}}, "even number of at least 2, not 0"),
        ({"position": {"rotary_dim": 18}}, "rotary_dim 18 is larger than head_dim 16"),
        ({"position": {"kind": "alibi", "rotary_dim": 8}}, "not 'alibi'"),
        ({"position": {"kind": "learned", "rotary_dim": 8}}, "no rotary_dim, not 8"),
        ({"position": {"rotary_dim": 8, "rotary_base": float("nan")}}, "above 1, not nan"),
        ({"num_kv_heads": 3}, "4 query heads cannot share 3 key/value heads"),
        ({"num_layers": 10**9}, "num_layers must lie between 1 and 16777216, not 1000000000"),
        ({"num_layers": 5000}, "num_layers is 5000, above the limit of 1024"),
        ({"num_heads": -4}, "num_heads must lie between 1 and 16777216, not -4"),
        ({"vocab_size": 1.5}, "vocab_size must be a whole number, not 1.5"),
        ({"embed_dim": True}, "embed_dim must be a whole number, not True"),
        ({"norm_eps": float("nan")}, "norm_eps must lie between 0 and 1, not nan"),
        ({"variant": {"norm": "batch"}}, "norm must be one of layer, rms, not 'batch'"),
        ({"variant": {"num_norms": 3}}, "fed by 1 or 2 norms, not 3"),
        ({"variant": {"arrangement": "sequential"}}, "sequential block needs num_norms=2"),
        ({"colour": "blue"}, "colour"),
    ],
)
def test_a_config_that_cannot_work_is_refused(change: dict[str, object], message: str) -> None:
    values = config_to_json(SMALL) | change
    with pytest.raises(UsageError, match=message) as refusal:
        config_from_json(values)
    assert "\n" not in str(refusal.value)


def test_heads_that_do_not_divide_are_refused() -> None:
    with pytest.raises(UsageError, match="embedding of 768 does not divide into 7 heads"):
        even_head_dim(768, 7)
    # The shape that mesh-transformer-jax slices silently: heads of 48 with 64 rotary values.
    with pytest.raises(UsageError, match="rotary_dim 64 is larger than head_dim 48"):
        gptj_config(12, 768, 16, rotary_dim=64)


def test_a_tokenizer_larger_than_the_vocabulary_is_refused() -> None:
    with pytest.raises(UsageError, match="513 ids but the model only 512"):
        SMALL.check_tokenizer_size(513)
    SMALL.check_tokenizer_size(512)


@pytest.mark.parametrize("name", PRESETS)
def test_json_round_trip(name: str) -> None:
    assert config_from_json(config_to_json(preset(name))) == preset(name)


def test_unknown_preset_names_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"no preset 'gptj-7b'.*gptj-6b"):
        preset("gptj-7b")


def test_configs_are_values() -> None:
    assert replace(SMALL, num_layers=3) != SMALL
    assert hash(replace(SMALL)) == hash(SMALL)
    assert isinstance(SMALL, DecoderConfig)
    assert BlockVariant() == SMALL.variant
    assert PositionConfig(rotary_dim=8) == SMALL.position
