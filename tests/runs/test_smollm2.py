"""A real pretrained model, from its GGUF file, against two independent runs of the same file."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import bluejay
from bluejay.checkpoints.convert import convert
from bluejay.checkpoints.model_files import open_model
from bluejay.kernels.library import library
from bluejay.runs.language_model import LanguageModel
from golden_files import load_passage, load_window_reference


@pytest.fixture(scope="module")
def lm(smollm2_gguf: Path) -> LanguageModel:
    """In float32, as the references are; `packed` is the same model as it is stored."""
    return bluejay.load(smollm2_gguf, dtype="float32")


@pytest.fixture(scope="module")
def packed(smollm2_gguf: Path) -> LanguageModel:
    return bluejay.load(smollm2_gguf)


@pytest.fixture(scope="module")
def logits(lm: LanguageModel) -> NDArray[np.float32]:
    """Of 1,000 positions of a novel, each of which predicts the next id."""
    return lm.logits(load_window_reference("transformers").input_ids[:-1].tolist())


def log_sum_exp(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = logits.astype(np.float64)
    highest = wide.max(axis=-1)
    total: NDArray[np.float64] = highest + np.log(np.exp(wide - highest[:, None]).sum(axis=-1))
    return total


def test_the_window_is_the_passage_behind_the_document_start(lm: LanguageModel) -> None:
    window = load_window_reference("transformers").input_ids.tolist()
    assert lm.prompt_ids(load_passage())[: len(window)] == window
    assert window[0] == 0


def test_logits_equal_transformers_in_float32(logits: NDArray[np.float32]) -> None:
    reference = load_window_reference("transformers")
    rows = np.arange(len(logits))
    differences = {
        "top 8": np.abs(np.take_along_axis(logits, reference.top_ids, 1) - reference.top_logits),
        "49 probe ids": np.abs(logits[:, reference.probe_ids] - reference.probe_logits),
        "next id": np.abs(logits[rows, reference.input_ids[1:]] - reference.next_logits),
        "all ids at 5 positions": np.abs(logits[reference.full_positions] - reference.full_logits),
        "log sum exp": np.abs(log_sum_exp(logits) - reference.log_sum_exp),
    }
    for name, difference in differences.items():
        print(f"{name}: largest difference {difference.max():.1e}, spread {logits.std():.1f}")
        assert difference.max() <= 1e-3, name
    agreement = (logits.argmax(axis=-1) == reference.top_ids[:, 0]).mean()
    loss = (log_sum_exp(logits) - logits[rows, reference.input_ids[1:]]).mean()
    theirs = (reference.log_sum_exp - reference.next_logits).mean()
    print(f"top-1 agreement {agreement:.1%}, perplexity {np.exp(loss):.3f} / {np.exp(theirs):.3f}")
    assert agreement >= 0.999
    assert loss == pytest.approx(theirs, abs=1e-4)


def test_logits_agree_with_llama_cpp_as_far_as_it_rounds(logits: NDArray[np.float32]) -> None:
    """llama.cpp rounds activations to 8 bits: 96 % and equal perplexity are exactness here."""
    reference = load_window_reference("llama_cpp")
    rows = np.arange(len(logits))
    agreement = (logits.argmax(axis=-1) == reference.top_ids[:, 0]).mean()
    loss = (log_sum_exp(logits) - logits[rows, reference.input_ids[1:]]).mean()
    theirs = (reference.log_sum_exp - reference.next_logits).mean()
    print(f"top-1 agreement {agreement:.1%}, perplexity {np.exp(loss):.2f} / {np.exp(theirs):.2f}")
    assert agreement >= 0.95
    assert np.exp(loss) == pytest.approx(np.exp(theirs), rel=0.02)


def test_packed_weights_lose_what_rounded_activations_cost(packed: LanguageModel) -> None:
    """As llama.cpp on the same file: it agrees with float32 in 96 % of the best ids."""
    reference = load_window_reference("transformers")
    logits = packed.logits(reference.input_ids[:-1].tolist())
    rows = np.arange(len(logits))
    agreement = (logits.argmax(axis=-1) == reference.top_ids[:, 0]).mean()
    loss = (log_sum_exp(logits) - logits[rows, reference.input_ids[1:]]).mean()
    theirs = (reference.log_sum_exp - reference.next_logits).mean()
    print(f"top-1 agreement {agreement:.1%}, perplexity {np.exp(loss):.3f} / {np.exp(theirs):.3f}")
    assert agreement >= 0.95
    assert loss == pytest.approx(theirs, abs=0.01)


def test_greedy_text_is_sensible(lm: LanguageModel, packed: LanguageModel) -> None:
    for model in (lm, packed):
        text = model.generate("The capital of France is", max_tokens=3, temperature=0)
        assert text.startswith(" Paris.")


def test_512_greedy_ids_do_not_depend_on_the_number_of_threads(packed: LanguageModel) -> None:
    """Nor do their log probabilities, to the bit."""
    native = library()
    assert native is not None, "the library was not built: is there a C++ compiler?"
    threads, found = native.num_threads, []
    try:
        for count in (1, 2):
            native.set_num_threads(count)
            [done] = packed.complete(
                "Once upon a time", max_tokens=512, temperature=0, speculation="off"
            )
            found.append([(token.id, token.logprob) for token in done.tokens])
    finally:
        native.set_num_threads(threads)
    assert len(found[0]) > 400
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("How", {"does", "can", "to", "do"}),
        ("I lo", {"love"}),
        ("Once upon a", {"time"}),
        ("don", {"don't"}),
    ],
)
def test_suggestions_are_what_a_keyboard_should_offer(
    lm: LanguageModel, typed: str, expected: set[str]
) -> None:
    found = lm.suggest(typed, k=len(expected))
    assert {word for word, _ in found} == expected
    assert found == sorted(found, key=lambda item: -item[1])
    assert sum(probability for _, probability in found) <= 1


def test_the_native_folder_holds_the_very_values(smollm2_gguf: Path, tmp_path: Path) -> None:
    report = convert(smollm2_gguf, tmp_path / "native", to="native")
    assert report.num_equal == report.num_tensors == 272
    assert report.num_parameters == 134_515_008
    assert report.dtypes == {"int4_offset": 210, "int8": 1, "float32": 61}
    assert open_model(tmp_path / "native").config == open_model(smollm2_gguf).config
    tokenizer = open_model(tmp_path / "native").tokenizer()
    assert tokenizer is not None
    assert tokenizer.stop_ids == {0, 2}
