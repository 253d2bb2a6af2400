"""Every instruction set that this processor has, one after the other."""

from collections.abc import Iterator

import pytest

from bluejay.kernels.library import INSTRUCTION_SETS, Library, library


@pytest.fixture(params=INSTRUCTION_SETS)
def native(request: pytest.FixtureRequest) -> Iterator[Library]:
    """The library, forced to one instruction set."""
    found = library()
    assert found is not None, "the library was not built: is there a C++ compiler?"
    best = found.instruction_set
    if not found.force(request.param):
        pytest.skip(f"this processor has no {request.param} (unverified here)")
    yield found
    assert found.force(best)
