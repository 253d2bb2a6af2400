"""What the suites of the text routes run against."""

from collections.abc import Iterator

import pytest

from serving.model_server import ServedModel, serve_model
from serving.text_server import SERVED, TextServer


@pytest.fixture(scope="package", params=SERVED)
def served(request: pytest.FixtureRequest) -> Iterator[TextServer]:
    """A live server of a model, whose engine the suite knows nothing of."""
    with SERVED[request.param]() as server:
        yield server


@pytest.fixture(scope="session")
def served_model() -> Iterator[ServedModel]:
    """The bundled model with all routes, whose start takes long: one for all suites."""
    with serve_model() as served:
        yield served
