"""The decoder computes the same over eight devices as on one, however it is laid out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bluejay.model.config import DecoderConfig
from bluejay.model.decoder import forward
from bluejay.model.params import DecoderParams, map_named, named_leaves
from bluejay.model.presets import preset
from bluejay.model.specs import decoder_specs, initialize

CONFIG = preset("gptj-nano")
# What tensor parallelism splits, by logical axis.
MODEL_AXES = {"heads", "kv_heads", "feed_forward", "vocab"}


def random_params(config: DecoderConfig) -> DecoderParams:
    """Nonzero everywhere, so that a bias added once per device would show."""
    params = initialize(decoder_specs(config), jax.random.key(0))
    noise = jax.random.key(1)
    return map_named(lambda _, x: x + 0.1 * jax.random.normal(noise, x.shape, x.dtype), params)


def place(params: DecoderParams, mesh: jax.sharding.Mesh) -> DecoderParams:
    """Each parameter split along the axes that its spec names, whole everywhere else."""
    specs = named_leaves(decoder_specs(CONFIG))

    def put(path: str, leaf: jax.Array) -> jax.Array:
        axes = ["model" if axis in MODEL_AXES else None for axis in specs[path].axes]
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*axes)))

    return map_named(put, params)


@pytest.mark.parametrize(("num_data", "num_model"), [(8, 1), (4, 2), (2, 4)])
def test_sharded_logits_equal_those_of_one_device(num_data: int, num_model: int) -> None:
    params = random_params(CONFIG)
    ids = jax.random.randint(jax.random.key(2), (16, 24), 0, CONFIG.vocab_size, jnp.int32)
    run = jax.jit(forward, static_argnames="config")
    expected = run(params, ids, config=CONFIG)

    types = (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Auto)
    mesh = jax.make_mesh((num_data, num_model), ("data", "model"), axis_types=types)
    sharded_ids = jax.device_put(ids, NamedSharding(mesh, PartitionSpec("data", None)))
    actual = run(place(params, mesh), sharded_ids, config=CONFIG)

    assert len(actual.sharding.device_set) == 8
    assert actual.sharding.shard_shape(actual.shape)[0] == 16 // num_data
    scale = float(jnp.abs(expected).max())
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * scale)
