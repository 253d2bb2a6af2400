"""`bluejay train` on one's own text, from nothing to a model that any command takes."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

import bluejay as api
from training_runs import bluejay, prepared_text, write_texts


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with my.txt, trained on for three steps."""
    folder = tmp_path_factory.mktemp("own")
    write_texts(folder / "texts")
    whole = "\n\n".join(path.read_text() for path in sorted((folder / "texts").iterdir()))
    (folder / "my.txt").write_text(whole)
    before = Path.cwd()
    os.chdir(folder)
    try:
        done = bluejay("train", "my.txt", "--steps", "3")
    finally:
        os.chdir(before)
    assert done.returncode == 0, done.stderr
    (folder / "stdout.txt").write_text(done.stdout)
    return folder


def test_ones_own_text_becomes_a_model(place: Path) -> None:
    told = (place / "stdout.txt").read_text()
    assert "about" in told
    assert "Trained 3 steps" in told
    lm = api.load(place / "runs" / "my")
    assert lm.config.num_layers == 4
    assert len(lm.generate("The", max_tokens=5, seed=1)) > 0
    # The end of the only document is held out, and its loss is that of a model hardly trained.
    metrics = (place / "runs/my/metrics.jsonl").read_text().splitlines()
    held_out = [json.loads(line) for line in metrics if '"eval"' in line]
    assert 4.0 < held_out[-1]["loss"] < 1.2 * math.log(lm.config.vocab_size)


def test_a_run_is_a_model_for_every_command(place: Path, tmp_path: Path) -> None:
    run = place / "runs" / "my"
    assert "4.2 M" in bluejay("info", run).stdout or "parameters" in bluejay("info", run).stdout
    done = bluejay("convert", run, tmp_path / "hf", "--to", "hf")
    assert done.returncode == 0, done.stderr
    ids = [5, 6, 7, 300]
    np.testing.assert_array_equal(api.load(tmp_path / "hf").logits(ids), api.load(run).logits(ids))
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["model_type"] == "gptj"


def test_training_goes_on_from_a_model(place: Path, tmp_path: Path) -> None:
    base = place / "runs" / "my"
    run = tmp_path / "tuned"
    done = bluejay("train", place / "my.txt", "--from", base, "--run", run, "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert f"from {base}" in done.stdout
    first = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    fresh = json.loads((base / "metrics.jsonl").read_text().splitlines()[0])
    assert first["loss"] < fresh["loss"] - 0.2


def test_a_plan_without_a_run(place: Path) -> None:
    done = bluejay("train", place / "my.txt", "--dry-run", "--run", place / "runs" / "other")
    assert done.returncode == 0, done.stderr
    assert "time" in done.stdout
    assert not (place / "runs" / "other" / "run.json").exists()


def test_time_that_is_up_saves(tmp_path: Path) -> None:
    data = prepared_text(tmp_path)
    run = tmp_path / "run"
    done = bluejay("train", "bluejay-nano", "--data", data, "--run", run, "--minutes", "0.0001")
    assert done.returncode == 75, done.stderr
    assert "Stopped after step 1 of 30" in done.stderr
    assert (run / "checkpoints" / "step-00000001" / "MANIFEST.json").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Give a recipe or your own text"),
        (["bluejay-tine"], "bluejay-tiny"),
        (["bluejay-tiny", "--steps", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_trained_is_said(arguments: list[str], told: str) -> None:
    done = bluejay("train", *arguments)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_text_that_is_too_short(tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("Hello, world. " * 20)
    done = bluejay("train", tmp_path / "short.txt", "--run", tmp_path / "run")
    assert done.returncode == 3
    assert "too few to learn from" in done.stderr
    assert not (tmp_path / "run" / "run.json").exists()


def test_recipes_without_books_say_where_to_get_them(tmp_path: Path) -> None:
    done = bluejay(
        "train",
        "bluejay-tiny",
        "--run",
        tmp_path / "run",
        BLUEJAY_DATA="",
        BLUEJAY_CACHE=str(tmp_path),
    )
    assert done.returncode == 2
    assert "--fetch-books" in done.stderr
