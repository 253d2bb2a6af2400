"""Decoding over several devices gives what one device does, and each has no more than its share."""

import re
from functools import cache
from typing import Any

import jax
import numpy as np
import pytest

import bluejay
from bluejay.core.errors import MemoryLimitError, UsageError
from bluejay.generation.runner import Runner
from bluejay.generation.sampling_params import SamplingParams
from bluejay.generation.slot_device import CallForm, SlotDevice
from bluejay.generation.slot_programs import decode_rows
from bluejay.generation.slot_rows import SlotRow, fixed_numbers
from bluejay.model.params import map_named
from bluejay.model.partition import partition
from bluejay.runs.mesh_loading import MeshPlacement, serving_mesh
from speculation_models import FAMILIES, VOCAB, params_of

# Logits are a few nats; sums over devices are rounded in another order.
TOLERANCE = 2e-5


@cache
def runner_over(family: str, num_devices: int, cache_dtype: str = "float32") -> Runner:
    mesh = serving_mesh({"model": num_devices})
    assert mesh is not None
    place = MeshPlacement.of(FAMILIES[family], mesh)

    def put(path: str, leaf: jax.Array) -> jax.Array:
        return place.put(path, np.asarray(leaf), np.dtype(np.float32))

    return Runner(
        map_named(put, params_of(family)), config=place.partition.config, cache_dtype=cache_dtype
    )


def shares(tree: Any) -> dict[int, int]:
    """Bytes on each device, by its number."""
    found: dict[int, int] = {}
    for leaf in jax.tree.leaves(tree):
        for shard in leaf.addressable_shards:
            found[shard.device.id] = found.get(shard.device.id, 0) + shard.data.nbytes
    return found


# 4 query heads and 97 ids of a vocabulary do not divide over 3 devices, 2 key/value heads of the
# llama not over 4: zeros fill up, heads are repeated.
@pytest.mark.parametrize(
    ("family", "num_devices"), [("gptj", 2), ("neox", 3), ("gpt2", 4), ("llama", 3), ("llama", 4)]
)
def test_logits_are_those_of_one_device(family: str, num_devices: int) -> None:
    config, over = FAMILIES[family], runner_over(family, num_devices)
    ids = np.random.default_rng(5).integers(0, VOCAB, 150).tolist()
    expected = Runner(params_of(family), config=config).score(ids)
    found = over.score(ids)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)
    assert over.config.num_heads % num_devices == 0
    assert over.config.num_kv_heads % num_devices == 0


def device_of(runner: Runner) -> SlotDevice:
    return SlotDevice(runner, allowed=np.ones(VOCAB, np.bool_), num_slots=3, context_length=256)


@pytest.mark.parametrize(
    ("family", "num_devices", "cache_dtype"), [("gptj", 4, "float32"), ("llama", 2, "int8")]
)
def test_each_device_has_its_share_before_and_after_calls(
    family: str, num_devices: int, cache_dtype: str
) -> None:
    config, runner = FAMILIES[family], runner_over(family, num_devices, cache_dtype)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(params_of(family)))
    found = shares(runner.params)
    assert sorted(found) == list(range(num_devices))
    # Norms and biases of the residual are everywhere, and ids are filled up.
    assert all(whole <= share * num_devices < 1.1 * whole for share in found.values())

    device = device_of(runner)
    # Keys and values of 2 layers, 3 slots and 256 positions; a scale of 4 bytes with int8.
    per_head = 16 + 4 if cache_dtype == "int8" else 16 * 4
    share = 2 * 2 * 3 * 256 * config.num_kv_heads * per_head // num_devices
    assert shares(device._cache) == dict.fromkeys(range(num_devices), share)
    fixed = fixed_numbers(SamplingParams())
    device.decode(
        [SlotRow(slot=slot, length=1, fixed=fixed) for slot in (0, 2)],
        CallForm(),
        num_steps=2,
        hear=lambda _choices, _is_last: None,
    )
    device.copy(0, 1, 2)
    assert shares(device._cache) == dict.fromkeys(range(num_devices), share)


def test_no_weight_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between devices go sums of rows, and logits: a call that fetched a matrix would be slow."""
    device = device_of(runner_over("llama", 4))
    texts: list[str] = []

    def spy(*arguments: Any, **named: Any) -> Any:
        texts.append(decode_rows.lower(*arguments, **named).compile().as_text())
        return decode_rows(*arguments, **named)

    monkeypatch.setattr("bluejay.generation.slot_device.decode_rows", spy)
    device.decode(
        [SlotRow(slot=0, length=1, fixed=fixed_numbers(SamplingParams()))],
        CallForm(),
        num_steps=1,
        hear=lambda _choices, _is_last: None,
    )
    [text] = texts
    kinds = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"
    moved = re.findall(rf"= (\S.*?) (?:{kinds})(?:-start)?\(", text)
    sizes = [
        int(np.prod([int(size) for size in shape.split(",")]))
        for one in moved
        for shape in re.findall(r"\[([\d,]+)\]", one)
    ]
    # A row of each of 3 slots: 64 numbers, or 100 logits. The smallest matrix has 64 x 16.
    assert max(sizes) == 3 * 100
    # Of the embedding, and of attention and feed-forward in each of 2 layers.
    assert sizes.count(3 * 64) == 1 + 2 * 2


def test_the_bundled_model_writes_the_same_on_two_and_four_devices() -> None:
    """It has 7 heads: the eighth is of zeros."""
    one = bluejay.load("bluejay-tiny", dtype="float32")
    expected = one.generate("The sea was calm", max_tokens=16, temperature=0)
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(one.runner.params))
    for num_devices in (2, 4):
        over = bluejay.load("bluejay-tiny", mesh={"model": num_devices})
        assert over.generate("The sea was calm", max_tokens=16, temperature=0) == expected
        assert max(shares(over.runner.params).values()) < 1.05 * whole / num_devices


def test_what_cannot_be_shared_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        UsageError, match=r"4 query and 4 key/value heads, too few for 8 .* model=7"
    ):
        partition(FAMILIES["gptj"], 8)
    with pytest.raises(UsageError, match="--mesh model=9 needs 9 devices, and only 8 devices are"):
        serving_mesh({"model": 9})
    monkeypatch.setattr("bluejay.runs.device_memory.available_bytes", lambda: 20_000_000)
    with pytest.raises(MemoryLimitError, match=r"0\.0 GB of memory for its weights on each device"):
        bluejay.load("bluejay-tiny", mesh={"model": 2})
    with pytest.raises(MemoryLimitError, match=r"between the 8 devices here \(--mesh model=8\)"):
        bluejay.load("bluejay-tiny")
