"""Every recipe is a whole description that survives the disk, and none changes unnoticed."""

import json

import pytest

from bluejay.core.errors import UsageError
from bluejay.model.specs import decoder_specs, parameter_count
from bluejay.recipes.registry import RECIPES, recipe
from bluejay.runs.train_run import run_from_json, run_text, run_to_json, with_total_steps


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_comes_back_from_json(name: str) -> None:
    run = recipe(name)
    assert run.name == name
    assert run_from_json(json.loads(run_text(run))) == run


def test_the_bundled_models_recipe_is_this_one() -> None:
    run = recipe("bluejay-tiny")
    assert parameter_count(decoder_specs(run.model)) == 5_461_632
    assert run.data.vocab_size == run.model.vocab_size == 4096
    assert run.total_steps * run.batch.tokens >= 20_000_000


def test_the_gpu_recipe_has_at_most_30_million_parameters() -> None:
    run = recipe("bluejay-small")
    assert 20_000_000 < parameter_count(decoder_specs(run.model)) <= 30_000_000
    assert run.compute_dtype == "bfloat16"


@pytest.mark.parametrize(
    ("part", "field", "value", "told"),
    [
        (None, "surprise", 1, "surprise"),
        (None, "compute_dtype", "float8", "float8"),
        (None, "num_parts", 3, "3 parts"),
        ("batch", "length", 4096, "4096"),
        ("intervals", "save_steps", 0, "save_steps"),
        ("data", "vocab_size", 100_000, "100000"),
    ],
)
def test_descriptions_that_cannot_be_are_refused(
    part: str | None, field: str, value: object, told: str
) -> None:
    values = json.loads(run_text(recipe("bluejay-tiny")))
    (values if part is None else values[part])[field] = value
    with pytest.raises(UsageError, match=told):
        run_from_json(values)


def test_another_end_keeps_the_shape_of_the_schedule() -> None:
    run = recipe("bluejay-tiny")
    shorter = with_total_steps(run, 600)
    assert (shorter.schedule.warmup_steps, shorter.schedule.decay_steps) == (10, 120)
    longer = with_total_steps(run, 60_000)
    assert longer.schedule.decay_steps == run.schedule.decay_steps
    assert run_to_json(longer)["total_steps"] == 60_000
