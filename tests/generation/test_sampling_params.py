import subprocess
import sys
from math import inf, nan
from typing import Any

import numpy as np
import pytest

from bluejay.core.errors import UsageError
from bluejay.generation.sampling_params import SamplingParams


@pytest.mark.parametrize(
    ("name", "value", "span"),
    [
        ("temperature", -0.5, "0 (greedy) or from 1e-06 to 1e+06"),
        ("temperature", 1e-9, "0 (greedy) or from 1e-06 to 1e+06"),
        ("temperature", inf, "0 (greedy) or from 1e-06 to 1e+06"),
        ("temperature", nan, "0 (greedy) or from 1e-06 to 1e+06"),
        ("temperature", "hot", "0 (greedy) or from 1e-06 to 1e+06"),
        ("top_k", -1, "a whole number from 0 to 2147483647"),
        ("top_k", 1.5, "a whole number from 0 to 2147483647"),
        ("top_k", 2**31, "a whole number from 0 to 2147483647"),
        ("top_p", 0, "above 0, at most 1"),
        ("top_p", 1.01, "above 0, at most 1"),
        ("typical_p", 0.0, "above 0, at most 1"),
        ("typical_p", nan, "above 0, at most 1"),
        ("min_p", 1, "from 0 to less than 1"),
        ("min_p", -0.1, "from 0 to less than 1"),
        ("repetition_penalty", 0, "from 1e-06 to 1e+06"),
        ("repetition_penalty", True, "from 1e-06 to 1e+06"),
        ("presence_penalty", 2.5, "from -2 to 2"),
        ("frequency_penalty", -2.01, "from -2 to 2"),
        ("seed", -1, "a whole number from 0 to 9223372036854775807"),
        ("seed", 2**63, "a whole number from 0 to 9223372036854775807"),
        ("seed", None, "a whole number from 0 to 9223372036854775807"),
    ],
)
def test_values_out_of_range_are_refused_with_the_range(name: str, value: Any, span: str) -> None:
    with pytest.raises(UsageError) as refused:
        SamplingParams(**{name: value})
    assert str(refused.value) == f"{name} is {value!r}, but it must be {span}."


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ({-1: 1.0}, "logit_bias names the id -1, but ids are whole numbers from 0."),
        ({"5": 1.0}, "logit_bias names the id '5', but ids are whole numbers from 0."),
        ({5: 101}, "logit_bias of id 5 is 101, but it must be a number from -100 to 100."),
        ({5: nan}, "logit_bias of id 5 is nan, but it must be a number from -100 to 100."),
    ],
)
def test_biases_out_of_range_are_refused(bias: Any, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        SamplingParams(logit_bias=bias)
    assert str(refused.value) == message


def test_borders_and_numpy_numbers_are_accepted() -> None:
    SamplingParams(temperature=0, top_p=1, min_p=0, typical_p=1, seed=2**63 - 1)
    SamplingParams(temperature=np.float32(0.7), top_k=np.int64(5), logit_bias={np.int32(3): -100})


def test_a_mapping_changed_later_changes_nothing() -> None:
    bias = {3: 1.0}
    params = SamplingParams(logit_bias=bias)
    bias[3] = 1e9
    assert params.logit_bias == {3: 1.0}


def test_parameters_are_checked_without_jax() -> None:
    code = "import sys, bluejay.generation.sampling_params; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
