from bluejay.vocab.byte_alphabet import (
    BYTE_CHARACTERS,
    CHARACTER_BYTES,
    bytes_to_token,
    token_to_bytes,
)


def test_published_stand_ins() -> None:
    # Space, newline and tab as they appear in every GPT-2 vocabulary.
    assert bytes_to_token(b" the\n\t") == "ĠtheĊĉ"
    assert bytes_to_token("é".encode()) == "Ã©"
    assert bytes_to_token(b"\x00\x7f\xad\xff") == "ĀġŃÿ"


def test_all_bytes_have_one_character_each() -> None:
    assert len(CHARACTER_BYTES) == 256
    assert token_to_bytes("".join(BYTE_CHARACTERS)) == bytes(range(256))


def test_text_outside_the_alphabet_stands_for_itself() -> None:
    assert token_to_bytes("   ") == b"   "
    assert token_to_bytes("日") == "日".encode()
