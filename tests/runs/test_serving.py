"""A server put together: what it takes on, and what it refuses before anything is made."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bluejay
from bluejay.core.errors import MemoryLimitError, UsageError
from bluejay.generation.engine_requests import EngineLimits
from bluejay.generation.runner import Runner
from bluejay.model.cache import cache_bytes, empty_cache
from bluejay.model.presets import gptj_config
from bluejay.runs.language_model import LanguageModel
from bluejay.runs.serving import ModelServer, ServingPlan, engine_limits
from bluejay.runs.serving_adapters import load_adapters
from bluejay.runs.serving_memory import require_memory, slots_bytes
from bluejay.runs.typed_model import TypedModel, typed_bytes
from bluejay.text.suggestions import suggest
from text_models import write_text_model

CONFIG = gptj_config(2, 64, 4, rotary_dim=8, vocab_size=320)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    return bluejay.load(write_text_model(tmp_path_factory.mktemp("serving") / "model"))


def test_the_context_is_the_models_up_to_2048_tokens() -> None:
    long, short = (replace(CONFIG, context_length=length) for length in (8192, 300))
    assert engine_limits(long, num_slots=3) == EngineLimits(num_slots=3, context_length=2048)
    assert engine_limits(long, context_length=8192).context_length == 8192
    assert engine_limits(short).context_length == 300
    with pytest.raises(UsageError, match="--context is 301, and the model was trained for 300"):
        engine_limits(short, context_length=301)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_the_size_that_is_told_is_that_of_the_cache(dtype: str) -> None:
    cache = empty_cache(CONFIG, batch=5, capacity=384, dtype=dtype)
    arrays = [
        array
        for layer in cache.layers
        for array in (layer.key, layer.value, layer.key_scales, layer.value_scales)
        if array is not None
    ]
    limits = EngineLimits(num_slots=5, context_length=300)
    assert slots_bytes(CONFIG, limits, dtype) == sum(array.nbytes for array in arrays)


def test_a_cache_that_does_not_fit_is_refused_with_both_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bluejay.runs.device_memory.available_bytes", lambda: 100_000_000)
    require_memory(CONFIG, EngineLimits(num_slots=8, context_length=2048), "float32")
    limits = EngineLimits(num_slots=100, context_length=2048)
    with pytest.raises(MemoryLimitError) as caught:
        require_memory(CONFIG, limits, "float32")
    assert str(caught.value) == (
        "100 slots of 2,048 tokens need 0.2 GB of memory beside the weights, and 0.1 GB are free:"
        " lower --slots or --context, or keep keys and values in --cache-dtype int8."
    )
    with pytest.raises(MemoryLimitError, match=r"lower --slots or --context\.$"):
        require_memory(CONFIG, EngineLimits(num_slots=1000, context_length=2048), "int8")
    few = EngineLimits(num_slots=8, context_length=2048)
    with pytest.raises(MemoryLimitError, match=r"8 slots .* need 0\.1 GB .* 0\.1 GB are free"):
        require_memory(CONFIG, few, "float32", words_bytes=90_000_000)


def test_what_typed_texts_may_take_is_bounded(model: LanguageModel) -> None:
    """Logits, and keys and values of so many rows of the texts that are read."""
    runner = model.runner
    row = cache_bytes(runner.config, positions=128, bytes_per_value=4)
    assert typed_bytes(runner, most=100) == (128 << 20) + 192 * row
    words = TypedModel(runner, most=100)
    assert words._memory is not None
    assert sum(array.nbytes for array in words._memory._kept._arrays) == 192 * row


def test_a_name_stands_for_one_model(model: LanguageModel) -> None:
    for given in ({"aliases": ["jay"]}, {"adapters": {"jay": model.runner.params}}):
        with pytest.raises(UsageError, match="The name 'jay' stands for two models"):
            ModelServer(model, ServingPlan(name="jay", created=0, **given))


def test_adapters_are_checkpoints_of_the_same_decoder(model: LanguageModel, tmp_path: Path) -> None:
    other = str(write_text_model(tmp_path / "other", seed=4))
    found = load_adapters(model, {"other": other})["other"]
    assert found.embedding.shape == model.runner.params.embedding.shape
    assert not np.array_equal(found.embedding, model.runner.params.embedding)
    few = str(write_text_model(tmp_path / "few", num_tokens=270))
    for place, sentence in (
        ("bluejay-tiny", "The adapter 'x' .* has num_layers 6, and the model 2"),
        (few, "The adapter 'x' .* has other tokens than the model"),
    ):
        with pytest.raises(UsageError, match=sentence):
            load_adapters(model, {"x": place})
    with pytest.raises(UsageError, match="The adapter 'x' keeps its weights in other number"):
        load_adapters(model, {"x": other}, dtype="bfloat16")


def test_words_of_a_long_text_are_read_from_its_end(
    model: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[int]] = []

    def spy_on(start: Callable[..., Any]) -> Callable[..., Any]:
        def spy(self: Any, ids: Sequence[int], *, reserve: int = 0) -> Any:
            read.append(list(ids))
            return start(self, ids, reserve=reserve)

        return spy

    for kind in (Runner, TypedModel):
        monkeypatch.setattr(kind, "start", spy_on(kind.start))
    text = "".join(f"the sky is {number} times as wide as the sea; " for number in range(60))
    suggest(model.runner, model.tokenizer, text)
    [whole] = read
    read.clear()
    found = suggest(TypedModel(model.runner, most=100), model.tokenizer, text)
    # 24 of the 100 places are for the longest word, one is the document start's.
    assert read == [[whole[0], *whole[-75:]]]
    assert found
