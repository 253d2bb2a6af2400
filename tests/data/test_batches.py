"""Every window once an epoch, in an order that the seed decides, whatever was read before."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluejay.core.errors import DataError, UsageError
from bluejay.data.batches import BatchConfig, Batches
from bluejay.data.permutation import mix, permuted
from bluejay.shards.reader import TokenShards
from bluejay.shards.writer import ShardWriter


def shards(folder: Path, num_tokens: int, **options: object) -> TokenShards:
    """The ids 0 … num_tokens - 1, so that a window shows where it was cut."""
    weighted = bool(options.get("has_weights"))
    with ShardWriter(
        folder, tokenizer_sha256="0" * 64, vocab_size=65_536, tokens_per_file=1000, **options
    ) as writer:
        ids = np.arange(num_tokens)
        weights = (ids % 2).astype(np.float32) if weighted else None
        writer.append(ids, num_text_bytes=num_tokens, weights=weights)
    return TokenShards(folder)


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_the_permutation_is_one(size: int, key: int) -> None:
    assert sorted(permuted(i, size, key) for i in range(size)) == list(range(size))


def test_mixing_is_that_of_splitmix64() -> None:
    """The first output of the published generator for the seed 0, and for 1234567."""
    assert mix(0) == 0xE220A8397B1DCDAF
    assert mix(1234567) == 6457827717110365317


def test_every_window_comes_once_an_epoch_and_epochs_differ(tmp_path: Path) -> None:
    batches = Batches(shards(tmp_path / "s", 5_000), BatchConfig(rows=4, length=50, seed=3))
    per_epoch = batches.num_windows // 4
    assert batches.num_windows % 4 == 2  # so the third batch list straddles two epochs
    rows = np.concatenate([batches[i].ids for i in range(2 * per_epoch + 1)])
    assert np.array_equal(rows[:, 1:], rows[:, :-1] + 1)
    first = rows[: batches.num_windows, 0]
    assert sorted(first) == [50 * w for w in range(batches.num_windows)]
    second = rows[batches.num_windows : 2 * batches.num_windows, 0]
    assert len(set(second % 50)) == 1
    assert second[0] % 50 != 0
    assert Counter(second // 50) == Counter(first // 50)
    assert not np.array_equal(first // 50, second // 50)


def test_a_batch_depends_on_its_number_alone(tmp_path: Path) -> None:
    opened = shards(tmp_path / "s", 5_000)
    config = BatchConfig(rows=4, length=50, seed=3)
    forward = [Batches(opened, config)[i].ids for i in range(60)]
    fresh = Batches(TokenShards(tmp_path / "s"), config)
    for number in (59, 0, 31):
        np.testing.assert_array_equal(fresh[number].ids, forward[number])
    other = Batches(opened, BatchConfig(rows=4, length=50, seed=4))
    assert not np.array_equal(other[0].ids, forward[0])


def test_the_order_of_a_run_is_these_windows(tmp_path: Path) -> None:
    """Written down once: another order would silently change every run that resumes."""
    batches = Batches(shards(tmp_path / "s", 5_000), BatchConfig(rows=4, length=50, seed=3))
    assert batches[0].ids[:, 0].tolist() == [4500, 3850, 700, 1200]
    assert batches[1000].ids[:, 0].tolist() == [4258, 1308, 608, 1758]


def test_blocks_keep_simple_texts_first(tmp_path: Path) -> None:
    config = BatchConfig(rows=4, length=50, shuffle_tokens=1_000)
    batches = Batches(shards(tmp_path / "s", 5_000), config)
    for block in range(4):
        rows = np.concatenate([batches[5 * block + i].ids for i in range(5)])
        assert (rows[:, 0] // 1_000 == block).all()


def test_rows_and_weights_stay_together(tmp_path: Path) -> None:
    opened = shards(tmp_path / "s", 4_000, row_length=40, has_weights=True)
    batches = Batches(opened, BatchConfig(rows=4, length=39))
    assert batches.num_windows == 100
    batch = batches[7]
    assert (batch.ids[:, 0] % 40 == 0).all()
    assert batch.weights is not None
    np.testing.assert_array_equal(batch.weights, batch.ids[:, 1:] % 2)
    with pytest.raises(DataError, match="39"):
        Batches(opened, BatchConfig(rows=4, length=50))


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="60 tokens"):
        Batches(shards(tmp_path / "s", 60), BatchConfig(rows=1, length=50))
    with pytest.raises(UsageError, match="rows must be at least 1, not 0"):
        BatchConfig(rows=0, length=50)
    with pytest.raises(UsageError, match="shuffle_tokens is 10"):
        BatchConfig(rows=1, length=50, shuffle_tokens=10)
