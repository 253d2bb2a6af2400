"""Values from files and users inside error messages: one line, short, nothing that escapes."""

_LONGEST = 60


def quoted(value: object) -> str:
    """Text and numbers as Python writes them, cut to 60 characters; other things by their type."""
    if isinstance(value, str):
        return repr(value if len(value) <= _LONGEST else value[: _LONGEST - 3] + "...")
    if isinstance(value, bool | float | None) or (
        isinstance(value, int) and value.bit_length() <= 128
    ):
        return repr(value)
    return f"a value of type {type(value).__name__}"


def one_line(text: str) -> str:
    """`text` with everything that does not print escaped."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
