"""Native layer norm, loss and block against the plain JAX ones, values and gradients."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bluejay.kernels.library import Library
from bluejay.kernels.products import native_products
from bluejay.model.decoder import residual
from bluejay.model.params import DecoderParams
from bluejay.model.presets import gptj_config
from bluejay.model.specs import decoder_specs, initialize
from bluejay.nn.losses import cross_entropy
from bluejay.nn.norms import layer_norm

each_library = settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def values_and_gradients(function: Callable[..., Any], *arguments: Any) -> list[np.ndarray]:
    """Everything that comes out of the function, and back to its arguments."""

    @jax.jit
    def both(arguments: Any) -> Any:
        found, pull = jax.vjp(function, *arguments)
        # Any gradient will do that is not the same everywhere.
        upstream = jax.tree.map(
            lambda x: jnp.cos(jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape)), found
        )
        return found, pull(upstream)

    return [np.asarray(x) for x in jax.tree.leaves(both(arguments))]


def assert_as_plain(
    function: Callable[..., Any], *arguments: Any, error: float, floor: float = 1e-2
) -> None:
    """Native and plain agree to `error` of the largest value of each array, or of `floor`."""
    plain = values_and_gradients(function, *arguments)
    with native_products("float32"):
        native = values_and_gradients(lambda *a: function(*a), *arguments)
    for expected, found in zip(plain, native, strict=True):
        scale = max(floor, float(np.max(np.abs(expected))))
        np.testing.assert_allclose(found, expected, rtol=0, atol=error * scale)


class TestLayerNorm:
    @each_library
    @given(rows=st.integers(1, 70), width=st.integers(1, 70))
    def test_any_size(self, native: Library, rows: int, width: int) -> None:
        arguments = (3 * normal(rows, width) + 1, normal(width, seed=1), normal(width, seed=2))
        assert_as_plain(lambda x, s, b: layer_norm(x, s, b, eps=1e-5), *arguments, error=2e-5)

    def test_as_wide_as_a_model(self, native: Library) -> None:
        arguments = (normal(2, 50, 224), normal(224, seed=1), normal(224, seed=2))
        assert_as_plain(lambda x, s, b: layer_norm(x, s, b, eps=1e-5), *arguments, error=3e-6)


class TestCrossEntropy:
    @each_library
    @given(rows=st.integers(1, 70), width=st.integers(1, 70), spread=st.sampled_from([1.0, 60.0]))
    def test_any_size(self, native: Library, rows: int, width: int, spread: float) -> None:
        targets = np.random.default_rng(rows).integers(0, width, rows, dtype=np.int32)
        arguments = (spread * normal(rows, width), normal(width, seed=1))
        assert_as_plain(
            lambda x, b: cross_entropy(x, jnp.asarray(targets), b),
            *arguments,
            error=4e-6,
            floor=1.0,
        )

    def test_without_bias_over_a_vocabulary(self, native: Library) -> None:
        targets = np.random.default_rng(0).integers(0, 4096, (2, 40), dtype=np.int32)
        assert_as_plain(
            lambda x: cross_entropy(x, jnp.asarray(targets)),
            normal(2, 40, 4096),
            error=2e-6,
            floor=1.0,
        )

    @pytest.mark.parametrize("bad", [-1, 50])
    def test_a_target_outside_is_an_error(self, native: Library, bad: int) -> None:
        with (
            native_products("float32"),
            pytest.raises(jax.errors.JaxRuntimeError, match="target lies outside"),
        ):
            jax.block_until_ready(
                cross_entropy(jnp.asarray(normal(1, 50)), jnp.asarray([bad], jnp.int32))
            )


def small_model(heads: int, width: int, rotary: int) -> tuple[Any, DecoderParams]:
    config = gptj_config(1, heads * width, heads, rotary_dim=rotary, vocab_size=61)
    params = initialize(decoder_specs(config), jax.random.key(1), recipe="huggingface")
    moved = jax.tree.map(lambda x: x + 0.1 * normal(*x.shape), params)
    return replace(config, context_length=256), moved


class TestParallelBlock:
    @pytest.mark.parametrize(
        ("length", "heads", "width", "rotary"), [(1, 3, 8, 4), (63, 2, 40, 40), (130, 3, 8, 4)]
    )
    def test_whole_sequences(
        self, native: Library, length: int, heads: int, width: int, rotary: int
    ) -> None:
        config, params = small_model(heads, width, rotary)
        ids = np.random.default_rng(0).integers(0, 61, (3, length), dtype=np.int32)
        assert_as_plain(lambda p: residual(p, jnp.asarray(ids), config=config), params, error=1e-5)

    def test_the_number_of_threads_changes_no_bit(self, native: Library) -> None:
        config, params = small_model(2, 32, 16)
        ids = np.random.default_rng(0).integers(0, 61, (3, 100), dtype=np.int32)
        before, found = native.num_threads, []
        for threads in (1, 2, 3):
            native.set_num_threads(threads)
            with native_products("float32"):
                found.append(
                    values_and_gradients(
                        lambda p: residual(p, jnp.asarray(ids), config=config), params
                    )
                )
        native.set_num_threads(before)
        for other in found[1:]:
            for a, b in zip(found[0], other, strict=True):
                assert a.tobytes() == b.tobytes()

    def test_a_row_does_not_depend_on_those_beside_it(self, native: Library) -> None:
        config, params = small_model(2, 32, 16)
        ids = np.random.default_rng(0).integers(0, 61, (5, 70), dtype=np.int32)
        with native_products("float32"):
            whole = np.asarray(residual(params, jnp.asarray(ids), config=config))
            alone = np.asarray(residual(params, jnp.asarray(ids[2:3]), config=config))
        assert whole[2].tobytes() == alone[0].tobytes()
