"""The Python API on small models: what it promises, and what it says when it cannot."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

import bluejay
from bluejay.checkpoints.convert import convert
from bluejay.core.errors import CheckpointError, MemoryLimitError, UsageError
from bluejay.runs.language_model import LanguageModel
from golden_files import load_case, load_greedy_references, write_hf_folder
from text_models import write_text_model

TEXT = (
    "the sea is wide and the sky is blue; a jay is blue too, and sings — naïvely. " * 30
).split()
VOCAB = 96


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with a genuine tokenizer of its own."""
    case = load_case("gptj-rotary-full-head")
    return write_hf_folder(case, tmp_path_factory.mktemp("model") / "hf")


@pytest.fixture(scope="module")
def with_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("text") / "model")


@pytest.fixture(scope="module")
def lm(with_text: Path) -> LanguageModel:
    return bluejay.load(with_text)


def test_greedy_ids_are_those_of_transformers(tmp_path: Path) -> None:
    for name in ("gptj-rotary-32-of-64", "llama-grouped-tied"):
        model = bluejay.load(write_hf_folder(load_case(name), tmp_path / name))
        runner = model.runner
        for reference in load_greedy_references(name):
            count = len(reference.continuation)
            prefix = runner.start(reference.prompt.tolist(), reserve=count)
            found = []
            for _ in range(count):
                found.append(int(prefix.logits.argmax()))
                prefix = runner.step(prefix, found[-1])
            assert found == reference.continuation.tolist()


def test_logits_are_those_of_transformers(folder: Path) -> None:
    case = load_case("gptj-rotary-full-head")
    found = bluejay.load(folder).logits(case.input_ids[0].tolist())
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, case.logits[0], rtol=0, atol=1e-4)


def test_streamed_text_is_the_generated_text(lm: LanguageModel) -> None:
    for seed in range(5):
        whole = lm.generate("the sea", max_tokens=40, seed=seed)
        assert "".join(lm.stream("the sea", max_tokens=40, seed=seed)) == whole
        [completion] = lm.complete("the sea", max_tokens=40, seed=seed)
        assert completion.text == whole
        assert completion.text == lm.tokenizer.decode(completion.ids, skip_special=True)
        assert completion.finish_reason in ("stop", "length")


def test_sample_i_of_seed_s_is_the_same_alone_and_in_any_batch(lm: LanguageModel) -> None:
    prompts = ["the sea", "a jay is blue and", "naïvely", "t"]
    alone = [lm.complete(p, max_tokens=12, seed=7, n=3) for p in prompts]
    together = lm.complete(prompts, max_tokens=12, seed=7, n=3)
    assert [c.ids for row in alone for c in row] == [c.ids for c in together]
    fewer = lm.complete(prompts, max_tokens=12, seed=7)
    assert [c.ids for c in fewer] == [row[0].ids for row in alone]
    assert len({row[0].ids for row in alone} | {c.ids for c in alone[0]}) > 3


def test_batched_programs_give_what_they_gave_alone(with_text: Path) -> None:
    """The runner of devices that multiply many rows at once, in static groups of four."""
    from bluejay.generation.runner import Runner

    single = bluejay.load(with_text)
    batched = LanguageModel(
        single.files, Runner(single.runner.params, config=single.config, rows_per_call=4)
    )
    prompts = ["the sea", "a jay is blue and", "naïvely", "t", "sky"]
    together = batched.complete(prompts, max_tokens=9, seed=3, n=2)
    for index, prompt in enumerate(prompts):
        alone = batched.complete(prompt, max_tokens=9, seed=3, n=2)
        assert [c.ids for c in alone] == [c.ids for c in together if c.prompt_index == index]
        for mine, theirs in zip(
            alone, [c for c in together if c.prompt_index == index], strict=True
        ):
            assert [t.logprob for t in mine.tokens] == [t.logprob for t in theirs.tokens]


@pytest.mark.parametrize("rows", [1, 2])
def test_samples_of_one_prompt_share_it_in_groups_of_any_size(with_text: Path, rows: int) -> None:
    """One row at a time is how XLA decodes on a CPU, where no kernels are."""
    from bluejay.generation.runner import Runner

    whole = bluejay.load(with_text)
    runner = Runner(whole.runner.params, config=whole.config, rows_per_call=rows)
    found = LanguageModel(whole.files, runner).complete("the sea", max_tokens=9, seed=3, n=5)
    expected = whole.complete("the sea", max_tokens=9, seed=3, n=5)
    assert [c.ids for c in found] == [c.ids for c in expected]


def test_stop_strings_end_the_text_before_them(lm: LanguageModel) -> None:
    whole = lm.generate("the", max_tokens=60, seed=1)
    stop = whole[10:13]
    cut = lm.complete("the", max_tokens=60, seed=1, stop=[stop, "\x00never"])[0]
    assert cut.text == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"
    assert "".join(lm.stream("the", max_tokens=60, seed=1, stop=stop)) == cut.text


def test_ids_without_a_token_are_never_sampled(lm: LanguageModel) -> None:
    """The model has 320 rows and the tokenizer 280 ids: at a high temperature all would come."""
    assert lm.allowed.sum() == lm.tokenizer.vocab_size == 280
    ids = {
        i
        for c in lm.complete("the", max_tokens=200, temperature=50.0, top_p=1.0, seed=2, n=3)
        for i in c.ids
    }
    assert max(ids) < 280
    assert len(ids) > 150


def test_logprobs_are_the_models_own(lm: LanguageModel) -> None:
    [completion] = lm.complete(
        "the sea is", max_tokens=6, temperature=0, logprobs=3, echo=True, repetition_penalty=1.5
    )
    ids = [token.id for token in completion.prompt_tokens] + list(completion.ids)
    scores = np.asarray(jax.nn.log_softmax(lm.logits(ids)[:, :280], axis=-1))
    tokens = (*completion.prompt_tokens, *completion.tokens)
    assert tokens[0].logprob is None
    for position, token in enumerate(tokens[1:]):
        assert token.logprob == pytest.approx(float(scores[position, token.id]), abs=2e-5)
        best = np.sort(scores[position])[::-1][:3]
        assert [value for _, value in token.alternatives] == pytest.approx(list(best), abs=2e-5)


def test_score_is_the_sum_of_the_continuations_log_probabilities(lm: LanguageModel) -> None:
    total, greedy = lm.score("the sea is ", "wide and blue")
    ids = lm.tokenizer.encode("the sea is wide and blue")
    own = len(lm.tokenizer.encode("the sea is"))
    scores = np.asarray(jax.nn.log_softmax(lm.logits(ids)[:, :280], axis=-1))
    parts = [scores[i - 1, ids[i]] for i in range(own, len(ids))]
    assert total == pytest.approx(float(np.sum(parts)), abs=1e-4)
    assert greedy == all(scores[i - 1].argmax() == ids[i] for i in range(own, len(ids)))
    best = lm.generate("the sea is", max_tokens=3, temperature=0)
    prompt = lm.prompt_ids("the sea is")
    assert lm.score_ids(prompt, lm.complete("the sea is", max_tokens=3, temperature=0)[0].ids)[1]
    assert isinstance(best, str)
    empty_total, _ = lm.score("", "the sea")
    start = [lm.tokenizer.document_start_id]
    whole = [*start, *lm.tokenizer.encode("the sea")]
    scores = np.asarray(jax.nn.log_softmax(lm.logits(whole)[:, :280], axis=-1))
    expected = sum(float(scores[i, whole[i + 1]]) for i in range(len(whole) - 1))
    assert empty_total == pytest.approx(expected, abs=1e-4)


def test_suggestions_are_words_with_probabilities(lm: LanguageModel) -> None:
    found = lm.suggest("the sea is ", k=4)
    assert 0 < sum(probability for _, probability in found) <= 1
    assert len({word for word, _ in found}) == len(found) <= 4


@pytest.mark.parametrize("format", ["native", "hf"])
def test_save_and_load(lm: LanguageModel, format: str, tmp_path: Path) -> None:
    lm.save(tmp_path / "out", format=format)
    again = bluejay.load(tmp_path / "out")
    ids = lm.prompt_ids("a jay")
    assert np.array_equal(again.logits(ids), lm.logits(ids))
    assert again.generate("the", seed=1, max_tokens=9) == lm.generate("the", seed=1, max_tokens=9)
    with pytest.raises(UsageError, match="exists already"):
        lm.save(tmp_path / "out", format=format)


def test_a_folder_without_tokenizer_loads_and_says_what_is_missing(folder: Path) -> None:
    model = bluejay.load(folder)
    assert model.logits([1, 2, 3]).shape == (3, VOCAB)
    assert model.score_ids([1, 2], [3])[0] < 0
    for call in (lambda: model.generate("a"), lambda: model.suggest("a"), lambda: model.tokenizer):
        with pytest.raises(CheckpointError, match="has no tokenizer files, which this needs"):
            call()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        ({"max_tokens": 5000}, "exceed the model's context of 2048 tokens"),
        ({"n": 0}, "n must lie between 1 and 128, not 0"),
        ({"warmth": 1.0}, "There is no option 'warmth'"),
        ({"stop": [""]}, "not empty"),
        ({"logit_bias": {320: 1.0}}, "logit_bias names the id 320"),
    ],
)
def test_options_out_of_range_are_refused(
    lm: LanguageModel, options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        lm.complete("the", **options)


def test_a_model_larger_than_memory_is_refused_before_it_is_read(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bluejay.runs.device_memory.available_bytes", lambda: 1000)
    with pytest.raises(MemoryLimitError, match=r"needs 0\.0 GB of memory"):
        bluejay.load(folder)


def test_a_native_float32_model_is_mapped_not_copied(with_text: Path) -> None:
    model = bluejay.load(with_text)
    stored = model.files.source.read("blocks.0.attention.query")
    placed = model.runner.params.blocks[0].attention.query
    assert placed.unsafe_buffer_pointer() == stored.ctypes.data


def test_importing_bluejay_loads_no_jax() -> None:
    code = "import sys, bluejay; print('jax' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_the_narrow_dtypes_run(with_text: Path, tmp_path: Path) -> None:
    wide = bluejay.load(with_text)
    ids = wide.prompt_ids("the sea is blue")
    for dtype, bound in (("bfloat16", 0.1), ("float16", 0.02)):
        convert(with_text, tmp_path / dtype, to="native", dtype=dtype)
        stored = bluejay.load(tmp_path / dtype)
        narrow = bluejay.load(with_text, dtype=dtype)
        scale = float(np.abs(wide.logits(ids)).max())
        assert np.abs(stored.logits(ids) - wide.logits(ids)).max() <= bound * scale
        assert np.abs(narrow.logits(ids) - wide.logits(ids)).max() <= bound * scale
    manifest = json.loads((tmp_path / "float16" / "MANIFEST.json").read_text())
    assert manifest["format_version"] == 1
