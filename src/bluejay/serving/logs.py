"""The server's log: one line per request, and never a word of a prompt or an answer."""

import logging
import traceback

_LOGGER = logging.getLogger("bluejay.serving")


def log_failure(error: BaseException, *, request_id: str) -> None:
    """One line about an unexpected exception: its kind and place, but no message and no trace.

    A message may quote what the client sent.
    """
    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else "an unknown place"
    _LOGGER.error("%s %s at %s", request_id, type(error).__name__, place)
