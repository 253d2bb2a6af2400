"""The suffix index against a plain search of the whole text."""

from hypothesis import given
from hypothesis import strategies as st

from bluejay.generation.speculation_lookup import LONGEST, SHORTEST, SuffixIndex


def longest_match(ids: list[int]) -> tuple[int, set[int]]:
    """Length of the longest suffix that stands earlier too, and where such places end."""
    for length in range(len(ids) - 1, SHORTEST - 1, -1):
        suffix = ids[-length:]
        ends = {e for e in range(length, len(ids)) if ids[e - length : e] == suffix}
        if ends:
            return length, ends
    return 0, set()


@given(st.lists(st.integers(0, 2), max_size=80), st.integers(1, 20))
def test_finds_the_longest_match_there_is(ids: list[int], count: int) -> None:
    index = SuffixIndex()
    for at, token in enumerate(ids):
        index.extend([token])
        length, ends = longest_match(ids[: at + 1])
        if length <= LONGEST:
            assert index.match_length == length
        else:  # beyond what is looked up, a match grows but is not searched for
            assert LONGEST <= index.match_length <= length
            ends = {
                e for e in range(at + 1) if ids[e - LONGEST : e] == ids[at + 1 - LONGEST : at + 1]
            }
        proposal = index.proposal(count)
        assert len(proposal) == (count if length else 0)
        if length and length < LONGEST:
            end = max(ends)
            period = at + 1 - end
            assert proposal == [ids[end + number % period] for number in range(count)]


def test_the_most_recent_of_equal_matches_is_followed() -> None:
    assert SuffixIndex([1, 2, 7, 1, 2, 8, 9, 1, 2]).proposal(2) == [8, 9]


def test_a_longer_match_goes_before_a_more_recent_one() -> None:
    assert SuffixIndex([5, 1, 2, 7, 0, 1, 2, 8, 5, 1, 2]).proposal(1) == [7]


def test_a_match_grows_beyond_what_is_looked_up() -> None:
    text = list(range(30))
    index = SuffixIndex(text)
    assert index.match_length == 0
    index.extend(text[:25])
    assert index.match_length == 25
    assert index.proposal(4) == [25, 26, 27, 28]


def test_a_loop_goes_on_for_ever() -> None:
    assert SuffixIndex([4, 5, 6, 4, 5, 6]).proposal(7) == [4, 5, 6, 4, 5, 6, 4]


def test_nothing_comes_of_a_text_without_repetition() -> None:
    for ids in ([], [1], [1, 2], [1, 1], [1, 2, 3, 1]):
        index = SuffixIndex(ids)
        assert (index.match_length, index.proposal(3)) == (0, [])
