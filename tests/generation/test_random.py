"""Draws against a plain Threefry-2x32, whose own figures are the published ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bluejay.generation.random import draw_bits, scale_bits, seed_words

WORD = 0xFFFFFFFF


def threefry(key: tuple[int, int], counter: tuple[int, int]) -> tuple[int, int]:
    """Threefry-2x32 of 20 rounds (Salmon et al. 2011)."""
    keys = (*key, key[0] ^ key[1] ^ 0x1BD11BDA)
    x, y = (counter[0] + keys[0]) & WORD, (counter[1] + keys[1]) & WORD
    rotations = ((13, 15, 26, 6), (17, 29, 16, 24))
    for step in range(5):
        for rotation in rotations[step % 2]:
            x = (x + y) & WORD
            y = ((y << rotation | y >> (32 - rotation)) & WORD) ^ x
        x = (x + keys[(step + 1) % 3]) & WORD
        y = (y + keys[(step + 2) % 3] + step + 1) & WORD
    return x, y


def drawn(seed: int, sample: int, position: int) -> int:
    bits = draw_bits(
        jnp.asarray(seed_words(seed))[None],
        jnp.array([sample], jnp.int32),
        jnp.array([position], jnp.int32),
    )
    return int(bits[0])


def test_the_plain_cipher_gives_the_published_words() -> None:
    """Known answers of Random123's kat_vectors."""
    assert threefry((0, 0), (0, 0)) == (0x6B200159, 0x99BA4EFE)
    assert threefry((WORD, WORD), (WORD, WORD)) == (0x1CB996FC, 0xBB002BE7)
    assert threefry((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3)) == (0xC4923A9C, 0x483DF7A0)


@pytest.mark.parametrize("partitionable", [True, False])
@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**63 - 1])
def test_draws_are_the_ciphers_words(seed: int, partitionable: bool) -> None:
    with jax.threefry_partitionable(partitionable):
        for sample, position in [(0, 0), (3, 0), (0, 3), (41, 2047)]:
            key = (seed >> 32, seed & WORD)
            for counter in (sample, position):
                key = threefry(key, (0, counter))
            assert drawn(seed, sample, position) == key[0]


def test_scaled_bits_are_the_high_half_of_the_product() -> None:
    rng = np.random.default_rng(0)
    edges = np.array([0, 1, 0xFFFF, 0x10000, 2**31, WORD], dtype=np.uint32)
    bits = np.concatenate([np.repeat(edges, 4), rng.integers(0, 2**32, 1000, dtype=np.uint32)])
    bounds = np.concatenate(
        [np.tile([1, 0xFFFF, 2**30, 2**31 - 1], 6), rng.integers(1, 2**31, 1000)]
    ).astype(np.int32)
    expected = (bits.astype(np.uint64) * bounds.astype(np.uint64)) >> np.uint64(32)
    np.testing.assert_array_equal(scale_bits(jnp.asarray(bits), jnp.asarray(bounds)), expected)
