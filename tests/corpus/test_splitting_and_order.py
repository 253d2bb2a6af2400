"""Which side a document is on, where it stands, and which of its paragraphs stay."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluejay.core.errors import UsageError
from bluejay.corpus.dedup import ParagraphIndex, paragraph_key, without_repeats
from bluejay.corpus.ordering import difficulty
from bluejay.corpus.splitting import held_out_ids, parted

IDS = [f"book-{number}" for number in range(1000)]


def test_about_the_share_is_held_out_and_the_same_in_every_run() -> None:
    held_out = held_out_ids(IDS, 0.03)
    assert 15 <= len(held_out) <= 45
    assert held_out == held_out_ids(IDS[::-1], 0.03)
    # The hash of the id, as anybody can compute it.
    assert "book-0" not in held_out
    assert held_out <= held_out_ids(IDS, 0.06)


def test_a_document_keeps_its_side_when_others_come() -> None:
    half = held_out_ids(IDS[:500], 0.05)
    assert half == held_out_ids(IDS, 0.05) & set(IDS[:500])


@given(st.sets(st.text(min_size=1), max_size=6), st.floats(0, 1, exclude_max=True))
def test_two_documents_are_enough_for_both_sides(ids: set[str], share: float) -> None:
    held_out = held_out_ids(sorted(ids, key=repr), share)
    assert bool(held_out) == (share > 0 and len(ids) >= 2)
    assert held_out < ids or not ids


def test_ids_can_be_listed() -> None:
    assert held_out_ids(IDS, ["book-3", "book-5"]) == {"book-3", "book-5"}
    with pytest.raises(UsageError, match="no document 'book-x'"):
        held_out_ids(IDS, ["book-3", "book-x"])
    for share in (-0.1, 1.0, 2, float("nan")):
        with pytest.raises(UsageError, match="cannot be held out"):
            held_out_ids(IDS, share)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\n\ntwo\nthree four five", ("one\n\ntwo\nthree", "four five")),
        ("one two three\n\nfour five six", ("one two three", "four five six")),
        ("one two three\nfour five six", ("one two three", "four five six")),
        ("onetwothreefourfivesix", ("onetwothreefourfivesix", "")),
        ("", ("", "")),
    ],
)
def test_a_text_is_parted_between_words_at_least(text: str, expected: tuple[str, str]) -> None:
    assert parted(text, 0.7) == expected


LONG = "A paragraph that is long enough to be told from others, which takes eighty characters."


def test_copies_are_found_whatever_their_punctuation() -> None:
    key = paragraph_key(LONG)
    assert key is not None
    assert paragraph_key(LONG.upper().replace(",", " --\n")) == key
    assert paragraph_key(LONG.replace("eighty", "ninety")) != key
    assert paragraph_key(LONG[:79]) is None


def test_paragraphs_of_another_document_go_and_ones_own_refrain_stays() -> None:
    index, own = ParagraphIndex(), ParagraphIndex()
    key = paragraph_key(LONG)
    assert key is not None
    index.add("a", key)
    text = f"one\n\n{LONG}\n\ntwo\n\n{LONG}"
    assert without_repeats("b", text, {"why": index}, own) == ("one\n\ntwo", {"why": 2})
    assert without_repeats("a", text, {"why": index}, own) == (text, {})
    assert own.has_from_another("b", key)


def test_a_childrens_book_is_simpler_than_a_treatise() -> None:
    child = "The cat sat on the mat. It was a fat cat. The cat ran to me."
    treatise = (
        "Considerations regarding the epistemological presuppositions underlying contemporary "
        "philosophical investigations necessarily presuppose methodological clarification."
    )
    # 4.71 letters a word + 0.5 words a sentence - 21.43, by hand for the first.
    assert difficulty(child) == pytest.approx(4.71 * 42 / 16 + 0.5 * 16 / 3 - 21.43)
    assert difficulty(child) < 5 < 20 < difficulty(treatise)
    assert difficulty("") == difficulty("\n\n") == 0
