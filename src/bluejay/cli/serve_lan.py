"""What a phone in the same network needs: an address, a key that can be typed, a QR code."""

import io
import secrets
import socket
from typing import Final

from bluejay.cli.terminal import can_show
from bluejay.core.errors import UsageError

# Syllables of a consonant and a vowel, as of Wilkerson's proquints (arXiv:0901.4016): 16 times 4 of
# them, so that a syllable stands for 6 bits and can neither be misread nor misheard.
_CONSONANTS: Final = "bdfghjklmnprstvz"
_VOWELS: Final = "aiou"
_SYLLABLES_OF_A_WORD: Final = 3
_WORDS: Final = 5


def lan_address() -> str:
    """This machine's address in its network. UsageError without one."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # Nothing is sent: it is looked up where a packet would leave (RFC 5737: nobody's).
            probe.connect(("192.0.2.1", 9))
            address: str = probe.getsockname()[0]
        except OSError:
            address = ""
    if not address or address.startswith(("127.", "0.")):
        raise UsageError(
            "--lan finds no network that this machine is in: connect it, or give --host an address."
        )
    return address


def new_key() -> str:
    """A key of 90 random bits as five words that one can say and type."""
    return "-".join(
        "".join(
            secrets.choice(_CONSONANTS) + secrets.choice(_VOWELS)
            for _ in range(_SYLLABLES_OF_A_WORD)
        )
        for _ in range(_WORDS)
    )


def qr_code(text: str) -> str | None:
    """The text as a QR code of characters, None where the terminal lacks them."""
    if not can_show("\N{LOWER HALF BLOCK}\N{FULL BLOCK}"):
        return None
    import segno

    drawn = io.StringIO()
    segno.make_qr(text, error="l").terminal(drawn, compact=True, border=2)
    return drawn.getvalue()
