"""What every refusal of a checkpoint must be: quick, of one kind, and one line."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bluejay.core.errors import CheckpointError


def refused(open_it: Callable[[Path], object], path: Path) -> str:
    """The sentence with which `open_it` refuses `path`, within a second."""
    started = time.perf_counter()
    with pytest.raises(CheckpointError) as caught:
        open_it(path)
    assert time.perf_counter() - started < 1
    sentence = str(caught.value)
    assert sentence.isprintable(), sentence
    assert len(sentence) < 2000
    return sentence
