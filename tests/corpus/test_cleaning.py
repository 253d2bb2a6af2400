"""Text as people type it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluejay.corpus.cleaning import cleaned, typed_characters


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("“Don’t,” he said—‘no’…", "\"Don't,\" he said—'no'…"),
        ("„So“ ‚so‘", "\"So\" 'so'"),
        ("“\u200a‘Tis’\u200a”", "\"'Tis'\""),
        ("or two\u2060\u200a\u2060… or", "or two… or"),
        ("40°\u200aC, Mr.\u00a0X", "40° C, Mr. X"),
        ("Mr. B⸺ of ⸻shire", "Mr. B—— of ———shire"),
        ("co\u00adop\u200berate\ufeff\x00\x07", "cooperate"),
        ("a‑b ‒ c – d — e", "a-b - c – d — e"),
        ("می\u200cخواهم 👩\u200d🚀", "می\u200cخواهم 👩\u200d🚀"),
        ("日本語 naïve Ἀθήνα 🐦\tx", "日本語 naïve Ἀθήνα 🐦\tx"),
    ],
)
def test_typesetting_becomes_typing_and_the_rest_stays(text: str, expected: str) -> None:
    assert typed_characters(text) == expected


def test_lines_are_tidied_and_indents_kept() -> None:
    text = "\r\n\n  title  \r\n\r\n\r\n\r\ndef f():\n    return 1\t\n\u00a0\nend\n\n"
    assert cleaned(text) == "title\n\ndef f():\n    return 1\n\nend"


@given(st.text())
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    assert cleaned(cleaned(text)) == cleaned(text)
