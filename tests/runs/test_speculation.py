"""Speculation as users meet it: the Python API, the command line, and a real model."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import bluejay
from bluejay.core.errors import UsageError
from bluejay.runs.language_model import LanguageModel
from bluejay.text.completion import Completion
from text_models import write_text_model

# What a base model goes on with by repeating it.
COPYING = (
    "def area(width, height):\n    result = width * height\n    return result\n\n\n"
    "# The same, with another name:\n\n"
    "def surface(width, height):\n    result = width * height\n    return result\n\n\n"
    "# Once more:\n\ndef extent("
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("speculation") / "model")


@pytest.fixture(scope="module")
def lm(folder: Path) -> LanguageModel:
    return bluejay.load(folder)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bluejay", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def written(model: LanguageModel, prompt: str, **options: Any) -> Completion:
    [completion] = model.complete(prompt, **options)
    return completion


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_text_and_log_probabilities_do_not_depend_on_it(
    lm: LanguageModel, temperature: float
) -> None:
    options = {"max_tokens": 120, "temperature": temperature, "seed": 4, "logprobs": 2}
    prompt = "the sea is wide and the sky is blue; the sea is wide and the sky"
    plain = written(lm, prompt, speculation="off", **options)
    assert plain.num_drafted == 0
    for other in ({"speculation": "auto"}, {"speculation": "ngram"}, {"draft": lm}):
        found = written(lm, prompt, **other, **options)
        assert (found.ids, found.tokens) == (plain.ids, plain.tokens)
        assert 0 <= found.num_accepted <= found.num_drafted


def test_stop_strings_and_streams_do_not_depend_on_it(lm: LanguageModel) -> None:
    options: dict[str, Any] = {"max_tokens": 80, "seed": 1, "logit_bias": {40: 30.0}}
    whole = lm.generate("the", speculation="off", **options)
    stop = whole[20:22]
    for speculation in ("off", "ngram"):
        pieces = lm.stream("the", speculation=speculation, stop=stop, **options)
        assert "".join(pieces) == whole[: whole.index(stop)]


def test_a_draft_model_with_other_tokens_is_refused(lm: LanguageModel, tmp_path: Path) -> None:
    draft = bluejay.load(write_text_model(tmp_path / "other", num_tokens=270))
    expected = rf"{tmp_path / 'other'} has other tokens \(270\) than .*model \(280\)"
    with pytest.raises(UsageError, match=expected):
        lm.generate("the", draft=draft)


def test_modes_are_checked_before_anything_runs(lm: LanguageModel) -> None:
    with pytest.raises(UsageError, match="speculation must be auto, ngram, off, not 'on'"):
        lm.generate("the", speculation="on")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="leaves the draft model without work"):
        lm.generate("the", speculation="off", draft=lm)


def test_the_command_line_tells_what_was_drafted(folder: Path) -> None:
    arguments = ["generate", "the sea", "-m", str(folder), "--max-tokens", "60"]
    arguments += ["--temperature", "0", "--logit-bias", "40=90"]
    plain = command(*arguments, "--speculate", "off")
    assert "drafted" not in plain.stderr
    for options in (["--speculate", "ngram"], ["--draft", str(folder)]):
        done = command(*arguments, *options)
        assert done.stdout == plain.stdout
        assert "drafted tokens accepted" in done.stderr
    wrong = command(*arguments, "--speculate", "always")
    assert wrong.returncode == 2
    assert "takes auto, ngram or off, not 'always'" in wrong.stderr


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.0}, {"temperature": 0.8, "seed": 3, "repetition_penalty": 1.05}],
    ids=["greedy", "drawn"],
)
def test_a_real_model_writes_the_same(smollm2_gguf: Path, options: dict[str, Any]) -> None:
    """220 tokens, over the border of a chunk of attention, of a text that copies."""
    model = bluejay.load(smollm2_gguf)
    options = {"max_tokens": 220, "logprobs": 3, **options}
    plain = written(model, COPYING, speculation="off", **options)
    drafted = written(model, COPYING, speculation="ngram", **options)
    assert (drafted.ids, drafted.tokens) == (plain.ids, plain.tokens)
    assert drafted.num_accepted > 0
