"""Random numbers as a function of (seed, sample, position), and of nothing else.

Each draw is one block of Threefry-2x32 with 20 rounds: the key is the seed, folded with the
sample's index and the position. Only `fold_in` is used, whose bits are the same whatever
`jax_threefry_partitionable` says; the values are therefore those of the published cipher.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32, UInt32
from numpy.typing import NDArray


def seed_words(seed: int) -> NDArray[np.uint32]:
    """A seed of up to 63 bits as the cipher's two key words, high word first.

    `jax.random.key` drops the high half of a seed when 64-bit types are off.
    """
    return np.array([seed >> 32, seed & 0xFFFFFFFF], dtype=np.uint32)


def draw_bits(
    seeds: UInt32[Array, "B 2"], samples: Int32[Array, "B"], positions: Int32[Array, "B"]
) -> UInt32[Array, "B"]:
    """32 random bits for each row."""

    def draw(words: jax.Array, sample: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.wrap_key_data(words, impl="threefry2x32")
        for counter in (sample, position):
            key = jax.random.fold_in(key, counter.astype(jnp.uint32))
        return jax.random.key_data(key)[0]

    return jax.vmap(draw)(seeds, samples, positions)


def scale_bits(bits: UInt32[Array, "B"], bounds: Int32[Array, "B"]) -> Int32[Array, "B"]:
    """Random integers from 0 to `bounds` - 1: the high half of the 64-bit product.

    Each integer's probability is off by at most 2**-32.
    """
    factors = bounds.astype(jnp.uint32)
    high, low = bits >> 16, bits & 0xFFFF
    factor_high, factor_low = factors >> 16, factors & 0xFFFF
    middle = high * factor_low + ((low * factor_low) >> 16)
    other_middle = low * factor_high + (middle & 0xFFFF)
    product = high * factor_high + (middle >> 16) + (other_middle >> 16)
    integers: jax.Array = product.astype(jnp.int32)
    return integers
