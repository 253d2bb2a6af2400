from collections.abc import Iterator, Sequence
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluejay.core.errors import UsageError
from bluejay.generation.engine_requests import TokenScore
from bluejay.text.sample_writer import SampleWriter, TextPiece
from bluejay.vocab.gpt2 import gpt2_tokenizer
from bluejay.vocab.tokenizer import Tokenizer
from tokenizers_for_tests import smollm2_tokenizer

# One byte of each kind that UTF-8 tells apart (Unicode 15, table 3-7), with the borders.
KINDS = bytes.fromhex("00417f 80 8f90 9f a0 bf c1c2df e0e1ecedee ef f0f1f3f4f5ff".replace(" ", ""))
GPT2 = gpt2_tokenizer()
BYTE_IDS = {
    data[0]: i for i, data in enumerate(GPT2.token_bytes_table()) if data and len(data) == 1
}


def scores(ids: Sequence[int]) -> list[TokenScore]:
    return [TokenScore(id=i, logprob=-1.0) for i in ids]


def pieces(
    ids: Sequence[int], *, stops: Sequence[str] = (), tokenizer: Tokenizer = GPT2
) -> Iterator[TextPiece]:
    """One id at a time, as a stream has them."""
    writer = SampleWriter(tokenizer, stops=stops)
    for score in scores(ids):
        yield writer.write([score])
    yield writer.finish()


def whole(
    ids: Sequence[int], *, stops: Sequence[str] = (), tokenizer: Tokenizer = GPT2
) -> TextPiece:
    writer = SampleWriter(tokenizer, stops=stops)
    return writer.write(scores(ids)) + writer.finish()


def cut(text: str, stops: Sequence[str]) -> str:
    """`text` up to the stop string that is complete first, by the definition."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))]
    return text


def character_of(data: bytes, position: int) -> int:
    """The number of the character that a byte belongs to, once all is decoded."""
    return len(data[: position + 1].decode("utf-8", "replace")) - 1


def offsets(ids: Sequence[int], tokenizer: Tokenizer) -> list[int]:
    """Where each token that has bytes begins, by the definition."""
    data, found = b"", []
    for i in ids:
        own = tokenizer.decode_bytes([i], skip_special=True)
        if own:
            found.append(character_of(data + own, len(data)))
            data += own
    return found


@pytest.mark.parametrize("length", [2, 3])
def test_bytes_of_every_kind_streamed_are_what_decode_makes_of_them(length: int) -> None:
    later = KINDS if length == 2 else KINDS[2:14]
    for data in product(KINDS, *[later] * (length - 1)):
        ids = [BYTE_IDS[byte] for byte in data]
        streamed = TextPiece.joined(list(pieces(ids)))
        assert streamed.text == bytes(data).decode("utf-8", "replace")
        assert [token.offset for token in streamed.tokens] == offsets(ids, GPT2)


@pytest.mark.parametrize("tokenizer", [GPT2, smollm2_tokenizer()])
def test_a_cut_character_is_the_same_streamed_and_whole(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("naïve “quotes” — 🦜🏴‍☠️ 你好, עברית!")
    for end in range(len(ids) + 1):
        text = "".join(piece.text for piece in pieces(ids[:end], tokenizer=tokenizer))
        assert text == whole(ids[:end], tokenizer=tokenizer).text == tokenizer.decode(ids[:end])


ids_of_any_kind = st.lists(
    st.one_of(
        st.integers(0, GPT2.vocab_size - 1),
        st.sampled_from([BYTE_IDS[byte] for byte in KINDS]),
        st.sampled_from(GPT2.encode("ab ab\nabba") + sorted(GPT2.special_ids)),
    ),
    max_size=12,
)
stops_to_meet = st.lists(
    st.sampled_from(["a", "ab", "\n", " a", "bb", "\ufffd", "b\ufffd", "<|end"]), max_size=3
)


@given(ids_of_any_kind, stops_to_meet)
def test_pieces_are_the_text_up_to_the_first_stop_string(ids: list[int], stops: list[str]) -> None:
    streamed = TextPiece.joined(list(pieces(ids, stops=stops)))
    assert streamed.text == cut(GPT2.decode(ids, skip_special=True), stops)
    assert streamed == whole(ids, stops=stops)


@given(ids_of_any_kind, stops_to_meet)
def test_tokens_come_with_their_first_character(ids: list[int], stops: list[str]) -> None:
    shown = [i for i in ids if i not in GPT2.special_ids]
    expected = list(zip(shown, offsets(shown, GPT2), strict=True))
    text, found = "", []
    for piece in pieces(ids, stops=stops):
        text += piece.text
        found += [(token.score.id, token.offset) for token in piece.tokens if token.is_shown]
        assert found == [pair for pair in expected if pair[1] < len(text)]


def test_nothing_is_taken_after_a_stop_string() -> None:
    writer = SampleWriter(GPT2, stops=["END"])
    ids = GPT2.encode("one END two")
    taken = writer.write(scores(ids))
    assert writer.is_stopped
    assert taken.text == "one "
    assert writer.num_tokens == len(GPT2.encode("one END"))
    assert not writer.write(scores(ids))
    assert not writer.finish()


def test_a_prompt_is_shown_as_it_is_and_cannot_stop() -> None:
    writer = SampleWriter(GPT2, stops=["END", "<|"])
    [end_of_text] = GPT2.special_ids
    euro = [BYTE_IDS[byte] for byte in "€".encode()]
    before = writer.write_prompt(scores([end_of_text, *GPT2.encode("END "), euro[0]]))
    assert before.text == "<|endoftext|>END "
    assert [token.offset for token in before.tokens] == [0, 13, 16]
    after = writer.write(scores([*euro[1:], *GPT2.encode(" END")]))
    assert after.text == "€ "
    assert [token.offset for token in after.tokens] == [17, 17, 17, 18]
    assert writer.is_stopped


def test_special_tokens_are_counted_and_not_written() -> None:
    [end_of_text] = GPT2.special_ids
    piece = whole([*GPT2.encode("a"), end_of_text, *GPT2.encode("b")])
    assert piece.text == "ab"
    assert [(token.offset, token.is_shown) for token in piece.tokens] == [
        (0, True),
        (1, False),
        (1, True),
    ]


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(UsageError, match="not empty"):
        SampleWriter(GPT2, stops=[""])
