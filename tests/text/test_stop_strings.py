import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluejay.core.errors import UsageError
from bluejay.text.stop_strings import StopMatcher


def run(stops: list[str], pieces: list[str]) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    shown = "".join(map(matcher.feed, pieces))
    return shown + matcher.flush(), matcher.found


def naive(stops: list[str], text: str) -> tuple[str, str | None]:
    for end in range(1, len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            found = max(complete, key=len)
            return text[: end - len(found)], found
    return text, None


letters = st.text(alphabet="ab\n", max_size=14)
stops_of_letters = st.lists(st.text(alphabet="ab\n", min_size=1, max_size=5), max_size=4)


@given(stops_of_letters, st.lists(letters, max_size=8))
def test_equals_the_definition_on_the_whole_text_however_it_is_cut(
    stops: list[str], pieces: list[str]
) -> None:
    assert run(stops, pieces) == naive(stops, "".join(pieces))


@given(stops_of_letters, st.lists(letters, max_size=8))
def test_what_is_shown_is_never_taken_back_and_nothing_certain_is_held_back(
    stops: list[str], pieces: list[str]
) -> None:
    matcher = StopMatcher(stops)
    shown, text = "", ""
    for piece in pieces:
        shown, text = shown + matcher.feed(piece), text + piece
        final, found = naive(stops, text)
        assert final.startswith(shown)
        if found is None:
            held = text[len(shown) :]
            assert not held or any(stop.startswith(held) for stop in stops)


def test_every_split_of_a_text_gives_the_same() -> None:
    text, stops = "one\n\ntwo", ["\n\n", "\nt"]
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            pieces = [text[:first], text[first:second], text[second:]]
            assert run(stops, pieces) == ("one", "\n\n")


def test_the_stop_string_that_is_complete_first_wins_and_the_longest_of_those() -> None:
    assert run(["abcd", "bc"], ["abcd"]) == ("a", "bc")
    assert run(["bc", "abc"], ["xabc"]) == ("x", "abc")


def test_holds_back_only_what_may_still_become_a_stop_string() -> None:
    matcher = StopMatcher(["###"])
    assert matcher.feed("a#") == "a"
    assert matcher.feed("#") == ""
    assert matcher.feed("b") == "##b"
    assert matcher.feed("##") == ""
    assert matcher.flush() == "##"


def test_after_the_end_nothing_more_comes() -> None:
    matcher = StopMatcher(["."])
    assert matcher.feed("Yes. No") == "Yes"
    assert (matcher.found, matcher.feed("more"), matcher.flush()) == (".", "", "")


def test_a_text_that_almost_repeats_the_stop_string_costs_linear_time() -> None:
    text = "a" * 20_000
    assert run(["a" * 500 + "b"], [text, "b"]) == ("a" * 19_500, "a" * 500 + "b")


@pytest.mark.parametrize("stops", [[""], ["a", ""], "stop"])
def test_empty_stop_strings_are_refused(stops: list[str]) -> None:
    with pytest.raises(UsageError, match="Stop strings"):
        StopMatcher(stops)
