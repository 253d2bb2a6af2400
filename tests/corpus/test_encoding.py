"""Ids of long documents are those of the whole text, wherever it is cut."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluejay.core.errors import UsageError
from bluejay.corpus import encoding
from bluejay.corpus.encoding import cut, encode_documents, splits_at_line_ends
from bluejay.vocab.gpt2 import gpt2_tokenizer
from bluejay.vocab.roles import SpecialRoles
from bluejay.vocab.tokenizer import Tokenizer
from bluejay.vocab.training import train_bpe
from tokenizers_for_tests import codegen_tokenizer, smollm2_tokenizer

PROSE = 'He said: "No.\n\nYes,"\n\n\n 12 34\n\n  don\'t\t\n\nlast. '


@pytest.fixture
def short_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "_PIECE_CHARACTERS", 3)
    monkeypatch.setattr(encoding, "_BATCH_CHARACTERS", 40)


def test_gpt2_and_what_we_train_are_known_to_split_at_line_ends() -> None:
    assert splits_at_line_ends(gpt2_tokenizer())
    assert splits_at_line_ends(smollm2_tokenizer())
    assert splits_at_line_ends(train_bpe([PROSE] * 9, vocab_size=270))
    # Its runs of spaces are added tokens, matched before the text is split.
    assert not splits_at_line_ends(codegen_tokenizer())


@pytest.mark.usefixtures("short_pieces")
def test_documents_get_the_ids_of_their_whole_text() -> None:
    texts = [PROSE * 3, "x", PROSE, "a\n\n" * 50]
    for tokenizer in (gpt2_tokenizer(), codegen_tokenizer()):
        start = tokenizer.document_start_id
        expected = [[start, *tokenizer.encode(text)] for text in texts]
        assert [ids.tolist() for ids in encode_documents(tokenizer, texts)] == expected


words = st.lists(
    st.sampled_from(["\n", "\n\n", " ", "a", "B.", '"', "'s", "7", "é", "\u3000", "\r"])
)


@given(words.map("".join))
def test_no_cut_changes_an_id(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoding, "_PIECE_CHARACTERS", 1)
        pieces = list(cut(text))
    assert "".join(pieces) == text
    tokenizer = gpt2_tokenizer()
    ids = [i for piece in pieces for i in tokenizer.encode(piece)]
    assert ids == tokenizer.encode(text)


def test_a_tokenizer_without_an_end_of_text_is_refused() -> None:
    trained = train_bpe([PROSE] * 9, vocab_size=260, special_tokens=())
    assert trained.roles == SpecialRoles()
    with pytest.raises(UsageError, match="no end-of-text token"):
        list(encode_documents(trained, ["x"]))


def test_real_books_encode_as_whole_texts(data_folder: Path) -> None:
    from bluejay.corpus.cleaning import cleaned
    from bluejay.corpus.document import Document
    from bluejay.corpus.reading import read_documents

    source = data_folder / "text" / "books" / "standardebooks-06.tar.zst"
    found = read_documents([source])
    texts = [
        cleaned(d.text) for d, _ in zip(found, range(3), strict=False) if isinstance(d, Document)
    ]
    tokenizer: Tokenizer = train_bpe([texts[0]], vocab_size=1000)
    assert all(len(list(cut(text))) > 1 for text in texts)
    for text, ids in zip(texts, encode_documents(tokenizer, texts), strict=True):
        assert ids[1:].tolist() == tokenizer.encode(text)
        assert tokenizer.decode(ids[1:].tolist()) == text
