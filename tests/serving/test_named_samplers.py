"""Named samplers against llama.cpp's own (`tests/golden/samplers.json`)."""

import json
from typing import Any

import numpy as np
import pytest

from bluejay.generation.candidates import Candidates
from bluejay.generation.sampler_chain import Mirostat
from bluejay.serving.named_samplers import SamplerSettings, named_stages
from golden_files import GOLDEN
from tokenizers_for_tests import smollm2_tokenizer

STORED: dict[str, Any] = json.loads((GOLDEN / "samplers.json").read_text())
IDS = np.asarray(STORED["ids"])
# Single precision there, double here.
EXACT = 2e-6


def start() -> Candidates:
    scores = np.asarray(STORED["scores"]).astype(np.float32).astype(np.float64)
    return Candidates(ids=IDS, scores=scores)


def shares_of(found: Candidates) -> dict[int, float]:
    return dict(zip(found.ids.tolist(), found.probabilities.tolist(), strict=True))


def settings_of(given: dict[str, float]) -> SamplerSettings:
    values = STORED["defaults"] | given
    temperature, reach = values["temperature"], values["dynatemp_range"]
    values |= {
        "temperature_low": max(0.0, temperature - reach),
        "temperature_high": temperature + reach,
        "repetition_penalty": values["repeat_penalty"],
        "repetition_last_n": values["repeat_last_n"],
    }
    return SamplerSettings(
        values=values,
        tokenizer=smollm2_tokenizer(),
        seed=(1, 0),
        breakers=tuple(STORED["breakers"]),
    )


def test_the_history_is_the_same_text() -> None:
    assert smollm2_tokenizer().encode(STORED["text"]) == STORED["history"]


@pytest.mark.parametrize("case", STORED["cases"], ids=lambda case: str(case["values"])[:60])
def test_samplers_leave_what_llama_cpp_leaves(case: dict[str, Any]) -> None:
    settings, left = settings_of(case["values"]), start()
    for name in case["samplers"]:
        for stage in named_stages(name, settings):
            stage.begin(STORED["history"])
            left = stage.sample(left)
    expected = dict(zip(case["ids"], case["shares"], strict=True))
    found = shares_of(left)
    assert found.keys() == {token for token, share in expected.items() if share > 0}
    assert found != shares_of(start())
    for token, share in found.items():
        assert share == pytest.approx(expected[token], abs=EXACT)


def test_mirostat_walks_as_llama_cpps_does() -> None:
    values = STORED["mirostat"]["values"]
    stage = Mirostat(target=values["mirostat_tau"], rate=values["mirostat_eta"])
    for step in STORED["mirostat"]["walk"]:
        left = stage.sample(start())
        found = shares_of(left)
        assert sorted(found) == step["ids"]
        for token, share in zip(step["ids"], step["shares"], strict=True):
            assert found[token] == pytest.approx(share, abs=EXACT)
        stage.chosen(step["chosen"])
