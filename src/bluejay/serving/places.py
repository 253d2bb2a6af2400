"""Places in the engine's queue, kept for requests that were let in and are not in it yet."""

import time

from starlette.types import Scope

STATE = "bluejay.place"
"""Under this name a request's `scope["state"]` has its place."""


class Places:
    """Counts those that are kept. One event loop only."""

    def __init__(self) -> None:
        self.num_kept = 0

    def keep(self) -> "Place":
        """One more."""
        return Place(self)


class Place:
    """One request's; `since` is of `time.monotonic`."""

    def __init__(self, places: Places) -> None:
        self._places: Places | None = places
        self.since = time.monotonic()
        places.num_kept += 1

    def free(self) -> None:
        """The engine has the request, or it has come to nothing. More calls do nothing."""
        places, self._places = self._places, None
        if places is not None:
            places.num_kept -= 1


def place_of(scope: Scope) -> Place | None:
    """The place that was kept for a request."""
    place = scope.get("state", {}).get(STATE)
    return place if isinstance(place, Place) else None
