import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluejay.text.typed_text import typed_text
from bluejay.text.words import State, incomplete_end, last_word, read, shape_of, token_words
from bluejay.vocab.gpt2 import gpt2_tokenizer

READINGS = [
    (" does not", State.STOP, " does"),
    (" don't", State.WORD, " don't"),
    (" don’t", State.WORD, " don’t"),
    (" students' ", State.STOP, " students"),
    (" students'", State.WORD_JOINER, " students"),
    (" well-known", State.STOP, " well"),
    (" foo_bar(", State.STOP, " foo_bar"),
    ("1984.", State.STOP, "1984"),
    ("x² ", State.STOP, "x"),
    ("日本語。", State.STOP, "日本語"),
    (" हिन्दी ", State.STOP, " हिन्दी"),
    ("cafe\u0301", State.WORD, "cafe\u0301"),
    (" 👍🏽 ok", State.STOP, " 👍🏽"),
    ("👨‍👩‍👧", State.EMOJI, "👨‍👩‍👧"),
    ("😂😂", State.STOP, "😂"),
    ("🇫🇷!", State.STOP, "🇫🇷"),
    ("love❤", State.STOP, "love"),
    ("!", State.STOP, ""),
    (" ©", State.STOP, ""),
    ("�", State.STOP, ""),
    ("'tis", State.STOP, ""),
    (" \n ", State.GAP, ""),
]


@pytest.mark.parametrize(("text", "state", "word"), READINGS)
def test_reads_one_word(text: str, state: State, word: str) -> None:
    reached, used = read(State.GAP, shape_of(text.encode()))
    assert (reached, text[:used]) == (state, word)


@pytest.mark.parametrize(
    ("text", "state", "word"),
    [
        ("How", State.WORD, "How"),
        ("I lo", State.WORD, "lo"),
        ("well-kn", State.WORD, "kn"),
        ("I don'", State.WORD_JOINER, "don'"),
        ("so 😂", State.EMOJI, "😂"),
        ("so😂ok", State.WORD, "ok"),
        ('He said "I', State.WORD, "I"),
        ("''a", State.WORD, "a"),
        ("I love ", State.GAP, ""),
        ("I love you.", State.GAP, ""),
        ("", State.GAP, ""),
    ],
)
def test_the_last_word_of_a_text(text: str, state: State, word: str) -> None:
    assert last_word(text) == (state, len(text) - len(word), word)


@given(st.text(alphabet="ab é'’_-.\u0301\u200d❤👍\U0001f3fd\U0001f1eb日 \n"))
def test_reading_in_pieces_is_reading_at_once(text: str) -> None:
    for cut in range(len(text) + 1):
        state, used = read(State.GAP, shape_of(text[:cut].encode()))
        if state != State.STOP:
            rest, more = read(state, shape_of(text[cut:].encode()))
            state, used = rest, cut + more if more else used
        assert (state, used) == read(State.GAP, shape_of(text.encode()))


def test_a_character_cut_in_two_stays_open() -> None:
    assert shape_of("né".encode()[:2]) == "a~"
    assert incomplete_end("né".encode()[:2]) == b"\xc3"
    assert incomplete_end("né".encode()) == b""


def test_tokens_that_cover_typed_bytes_are_found_by_comparing_all() -> None:
    words = token_words(gpt2_tokenizer())
    for typed in (b" lo", b" ", b"don'", "é".encode(), b"\x99", b"\xff", b"qqqqqq"):
        parts, ids, shapes = words.covering(typed)
        table = words.token_bytes
        assert sorted(ids) == [i for i, data in enumerate(table) if data.startswith(typed)]
        assert sorted(parts) == [
            i for i, data in enumerate(table) if data and data != typed and typed.startswith(data)
        ]
        names = list(words._numbers)
        assert [names[n] for n in shapes] == [shape_of(table[i][len(typed) :]) for i in ids]


@pytest.mark.parametrize(
    ("text", "head", "tail"),
    [
        ("How", "", "How"),
        ("I lo", "I", " lo"),
        ("I love ", "I love", " "),
        ("I love  ", "I love", "  "),
        ("I love you.", "I love you", "."),
        ("I said (", "I said", " ("),
        ("well-kn", "well-", "kn"),
        ("", "", ""),
    ],
)
def test_typed_text_goes_back_to_the_last_boundary(text: str, head: str, tail: str) -> None:
    tokenizer = gpt2_tokenizer()
    typed = typed_text(tokenizer, text)
    assert typed.head == (50256, *tokenizer.encode(head))
    assert typed.tail == tail.encode()


def test_at_most_four_tokens_of_a_long_word_are_healed() -> None:
    tokenizer = gpt2_tokenizer()
    text = "日本語日本語日本語"
    typed = typed_text(tokenizer, text)
    ids = tokenizer.encode(text)
    assert typed.head == (50256, *ids[:-4])
    assert typed.tail == tokenizer.decode_bytes(ids[-4:])
    assert typed.word == text
