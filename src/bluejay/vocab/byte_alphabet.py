"""GPT-2's printable stand-ins for the 256 bytes (openai/gpt-2, `encoder.py`).

Printable Latin-1 bytes stand for themselves; the other 68, in order, for U+0100 and up.
"""

_PRINTABLE = frozenset([*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)])


def _characters() -> tuple[str, ...]:
    stand_ins = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in _PRINTABLE else next(stand_ins)) for byte in range(256))


BYTE_CHARACTERS: tuple[str, ...] = _characters()
"""The character that stands for each byte, by byte value."""

CHARACTER_BYTES: dict[str, int] = {char: byte for byte, char in enumerate(BYTE_CHARACTERS)}

# Without these a tokenizer cannot write plain English, or any script below U+40000. The others
# (control characters, bytes that no UTF-8 has, planes 4 and up) are missing from SmolLM2's too.
NEEDED_BYTES = frozenset([0x09, 0x0A, 0x0D, *range(0x20, 0x7F), *range(0x80, 0xC0)])


def token_to_bytes(token: str) -> bytes:
    """The bytes a byte-level token stands for.

    A token with a character outside the alphabet stands for its own text, as in the decoder of
    `tokenizers`.
    """
    try:
        return bytes([CHARACTER_BYTES[char] for char in token])
    except KeyError:
        return token.encode("utf-8")


def bytes_to_token(data: bytes) -> str:
    return "".join([BYTE_CHARACTERS[byte] for byte in data])
