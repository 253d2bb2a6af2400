"""Names, their sources and the numbers beside them."""

import dataclasses

import pytest

from bluejay.checkpoints.catalogue import (
    CATALOGUE,
    HubSource,
    WheelSource,
    find_entry,
    is_name,
    unknown_name,
)
from bluejay.checkpoints.hub_cache import parse_hub_id
from bluejay.core.errors import UsageError
from bluejay.model.presets import PRESETS
from bluejay.model.specs import decoder_specs, parameter_count


def preset_of(name: str) -> str | None:
    """The preset that has the shape of a catalogue model."""
    for ending in ("-mono", "-multi", "-nl", "-deduped"):
        name = name.removesuffix(ending)
    if name in PRESETS:
        return name
    return "smollm2-135m-instruct" if name.startswith("smollm2") else "gptj-6b"


@pytest.mark.parametrize("name", CATALOGUE)
def test_parameters_are_those_of_the_spec_tree(name: str) -> None:
    config = PRESETS[preset_of(name) or ""]
    assert CATALOGUE[name].parameters == parameter_count(decoder_specs(config))


@pytest.mark.parametrize("name", CATALOGUE)
def test_entries_are_usable(name: str) -> None:
    entry = CATALOGUE[name]
    assert is_name(name)
    assert entry.name == name
    # Half precision at least, except for the 4-bit file; and not more than float32 with masks.
    low = 0.5 if isinstance(entry.source, WheelSource) else 1.99
    assert low * entry.parameters < entry.download_bytes < 4.6 * entry.parameters
    assert entry.disk_bytes >= entry.download_bytes
    assert entry.licence
    assert entry.good_for
    if isinstance(entry.source, HubSource):
        assert parse_hub_id(f"{entry.source.repository}@{entry.source.revision}") is not None


def test_the_known_fine_tunes_and_relatives_are_listed() -> None:
    repositories = {
        e.source.repository for e in CATALOGUE.values() if isinstance(e.source, HubSource)
    }
    assert repositories >= {
        "EleutherAI/gpt-j-6b",
        "databricks/dolly-v1-6b",
        "nomic-ai/gpt4all-j",
        "PygmalionAI/pygmalion-6b",
        "togethercomputer/GPT-JT-6B-v1",
        "Salesforce/codegen-350M-mono",
        "Salesforce/codegen-16B-nl",
        "EleutherAI/pythia-12b",
        "openai-community/gpt2-xl",
        "HuggingFaceTB/SmolLM2-135M",
    }


def test_sources_are_distinct() -> None:
    sources = [entry.source for entry in CATALOGUE.values()]
    assert len(set(sources)) == len(sources)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "..",
        "...",
        "a/b",
        "../x",
        "A",
        "a b",
        "a\\b",
        "a\0",
        "é",
        "x" * 65,
        "~",
        "a:b",
        "a\n",
    ],
)
def test_paths_and_the_like_are_no_names(text: str) -> None:
    assert not is_name(text)
    with pytest.raises(ValueError, match="no model name"):
        dataclasses.replace(CATALOGUE["gpt2"], name=text)


def test_names_are_found_in_any_case_and_by_repository() -> None:
    assert find_entry("GPT2") is CATALOGUE["gpt2"]
    assert find_entry("openai-community/gpt2") is CATALOGUE["gpt2"]
    assert find_entry("openai-community/gpt2@main") is None
    assert find_entry("gpt3") is None


def test_a_misspelt_name_gets_the_nearest_ones() -> None:
    error = unknown_name("smolm2-135m-instruct")
    assert isinstance(error, UsageError)
    assert "did you mean smollm2-135m-instruct" in str(error)
    assert "bluejay models" in str(error)
    assert "did you mean" not in str(unknown_name("qqqqqqqq"))
