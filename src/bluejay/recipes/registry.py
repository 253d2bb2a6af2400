"""The recipes that have a name on the command line."""

from collections.abc import Callable
from difflib import get_close_matches

from bluejay.core.errors import UsageError
from bluejay.recipes.bluejay_models import bluejay_nano, bluejay_small, bluejay_tiny
from bluejay.runs.train_run import TrainRun

RECIPES: dict[str, Callable[[], TrainRun]] = {
    "bluejay-tiny": bluejay_tiny,
    "bluejay-small": bluejay_small,
    "bluejay-nano": bluejay_nano,
}


def recipe(name: str) -> TrainRun:
    """The run of that name. Raises UsageError with the nearest names."""
    if name in RECIPES:
        return RECIPES[name]()
    close = get_close_matches(name, RECIPES, n=2, cutoff=0.5) or list(RECIPES)
    raise UsageError(
        f"There is no recipe and no file {name[:80]!r}: recipes are {', '.join(close)}; "
        "a path to your own text works too."
    )
