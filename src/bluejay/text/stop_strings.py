"""Stop strings in text that arrives in pieces."""

from collections.abc import Sequence

from bluejay.core.errors import UsageError


class StopMatcher:
    """Passes text on up to the first stop string, and never a part of that string.

    The first is the one that is complete first; of several that end at the same character the
    longest. So the result depends on the text alone, not on how tokens cut it, and nothing has to
    be generated beyond a match. Held back is only the end of the text that may still become a stop
    string.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        """UsageError for an empty stop string, and for one string in place of a list of them."""
        if isinstance(stops, str) or not all(stops):
            raise UsageError(
                f"Stop strings must be a list of texts that are not empty, not {stops!r}."
            )
        self._stops = tuple(dict.fromkeys(stops))
        self._fallbacks = tuple(_fallbacks(stop) for stop in self._stops)
        # How much of each stop string the text ends with.
        self._matched = [0] * len(self._stops)
        self._held = ""
        self.found: str | None = None

    def feed(self, text: str) -> str:
        """The text that is now certain to stand before any stop string.

        After a match (`found`) nothing more comes.
        """
        if self.found is not None:
            return ""
        for position, char in enumerate(text, start=1):
            complete = self._advance(char)
            if complete:
                self.found = max(complete, key=len)
                passed = (self._held + text[:position])[: -len(self.found)]
                self._held = ""
                return passed
        unsettled = self._held + text
        length = len(unsettled) - max(self._matched, default=0)
        self._held = unsettled[length:]
        return unsettled[:length]

    def flush(self) -> str:
        """What was held back, once the text has ended without a stop string."""
        held, self._held = self._held, ""
        return held

    def _advance(self, char: str) -> list[str]:
        """Take one character; the stop strings that it completes."""
        complete = []
        for index, (stop, fallback) in enumerate(zip(self._stops, self._fallbacks, strict=True)):
            length = self._matched[index]
            while length and stop[length] != char:
                length = fallback[length - 1]
            length += stop[length] == char
            if length == len(stop):
                complete.append(stop)
                length = fallback[-1]
            self._matched[index] = length
        return complete


def _fallbacks(pattern: str) -> tuple[int, ...]:
    """For each prefix the length of its longest proper beginning that is also its end
    (Knuth, Morris and Pratt 1977): what is left of a match when the next character differs."""
    table, length = [0], 0
    for char in pattern[1:]:
        while length and pattern[length] != char:
            length = table[length - 1]
        length += pattern[length] == char
        table.append(length)
    return tuple(table)
