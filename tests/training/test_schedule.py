"""Learning rates of the 2021 recipe and of warm-up, plateau and decay."""

import math

import jax.numpy as jnp
import pytest

from bluejay.core.errors import UsageError
from bluejay.training.schedule import ScheduleConfig, factor


def at(config: ScheduleConfig, step: int) -> float:
    return float(factor(config, jnp.int32(step)))


def test_the_2021_schedule_has_the_originals_values() -> None:
    """util.py of mesh-transformer-jax: 3,000 steps up to 1.2e-4, 300,000 down to 1.2e-5, flat."""
    config = ScheduleConfig(
        shape="cosine",
        warmup_steps=3_000,
        decay_steps=300_000,
        total_steps=350_000,
        final_factor=0.1,
    )
    peak = 1.2e-4
    expected = {
        0: 0.0,
        1_500: 0.6e-4,
        3_000: 1.2e-4,
        153_000: (1.2e-4 + 1.2e-5) / 2,
        303_000: 1.2e-5,
        349_999: 1.2e-5,
        78_000: 1.2e-5 + (1.2e-4 - 1.2e-5) * (0.5 + 0.5 * math.cos(math.pi / 4)),
    }
    for step, rate in expected.items():
        assert peak * at(config, step) == pytest.approx(rate, rel=1e-5, abs=1e-12), step


def test_stable_stays_and_ends_at_its_last_value() -> None:
    config = ScheduleConfig(shape="stable", warmup_steps=10, decay_steps=20, total_steps=100)
    assert at(config, 5) == pytest.approx(0.5)
    assert [at(config, step) for step in (10, 50, 80)] == [1.0, 1.0, 1.0]
    assert at(config, 90) == pytest.approx(0.5)
    assert at(config, 99) == pytest.approx(0.05)


def test_a_schedule_longer_than_the_run_is_refused() -> None:
    with pytest.raises(UsageError, match=r"90.*20.*100"):
        ScheduleConfig(shape="stable", warmup_steps=90, decay_steps=20, total_steps=100)
