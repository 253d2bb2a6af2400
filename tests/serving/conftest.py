"""What the suites of the text routes run against."""

from collections.abc import Iterator

import pytest

from serving.text_server import SERVED, TextServer


@pytest.fixture(scope="package", params=SERVED)
def served(request: pytest.FixtureRequest) -> Iterator[TextServer]:
    """A live server of a model, whose engine the suite knows nothing of."""
    with SERVED[request.param]() as server:
        yield server
