"""The decoder computes the same over eight devices as on one, however it is laid out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bluejay.core.errors import UsageError
from bluejay.mesh.placement import (
    FULLY_SHARDED,
    REPLICATED,
    TENSOR_PARALLEL,
    Rules,
    make_mesh,
    sharding_of,
)
from bluejay.model.config import DecoderConfig
from bluejay.model.decoder import forward
from bluejay.model.params import DecoderParams, map_named, named_leaves
from bluejay.model.presets import preset
from bluejay.model.specs import decoder_specs, initialize

CONFIG = preset("gptj-nano")


def random_params(config: DecoderConfig) -> DecoderParams:
    """Nonzero everywhere, so that a bias added once per device would show."""
    params = initialize(decoder_specs(config), jax.random.key(0))
    noise = jax.random.key(1)
    return map_named(lambda _, x: x + 0.1 * jax.random.normal(noise, x.shape, x.dtype), params)


def place(params: DecoderParams, mesh: Mesh, rules: Rules) -> DecoderParams:
    specs = named_leaves(decoder_specs(CONFIG))

    def put(path: str, leaf: jax.Array) -> jax.Array:
        spec = specs[path]
        return jax.device_put(leaf, sharding_of(spec.shape, spec.axes, mesh=mesh, rules=rules))

    return map_named(put, params)


@pytest.mark.parametrize(
    ("num_data", "num_model", "rules"),
    [
        (8, 1, REPLICATED),
        (4, 2, TENSOR_PARALLEL),
        (2, 4, TENSOR_PARALLEL),
        (8, 1, FULLY_SHARDED),
        (4, 2, FULLY_SHARDED),
    ],
)
def test_sharded_logits_equal_those_of_one_device(
    num_data: int, num_model: int, rules: Rules
) -> None:
    params = random_params(CONFIG)
    ids = jax.random.randint(jax.random.key(2), (16, 24), 0, CONFIG.vocab_size, jnp.int32)
    run = jax.jit(forward, static_argnames="config")
    expected = run(params, ids, config=CONFIG)

    mesh = make_mesh(data=num_data, model=num_model)
    placed = place(params, mesh, rules)
    sharded_ids = jax.device_put(ids, NamedSharding(mesh, PartitionSpec("data", None)))
    actual = run(placed, sharded_ids, config=CONFIG)

    if rules is TENSOR_PARALLEL:
        heads = placed.blocks[0].attention.query
        assert heads.sharding.shard_shape(heads.shape)[0] == CONFIG.num_heads // num_model
    if rules is FULLY_SHARDED:
        up = placed.blocks[0].feed_forward.up
        assert up.sharding.shard_shape(up.shape)[1] == CONFIG.embed_dim // num_data
    else:
        assert actual.sharding.shard_shape(actual.shape)[0] == 16 // num_data
    assert len(actual.sharding.device_set) == 8
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)


def test_axes_that_cannot_be_split_are_refused_with_the_numbers() -> None:
    mesh = make_mesh(data=1, model=8)
    with pytest.raises(UsageError, match="axis heads of 4 does not divide over 8"):
        sharding_of((4, 16, 64), ("heads", "head", "embed"), mesh=mesh, rules=TENSOR_PARALLEL)
    with pytest.raises(UsageError, match="claim a mesh axis twice"):
        sharding_of((64, 64), ("embed", "embed"), mesh=mesh, rules=FULLY_SHARDED)
    with pytest.raises(UsageError, match="needs 32 devices, but there are 8"):
        make_mesh(data=8, model=4)
