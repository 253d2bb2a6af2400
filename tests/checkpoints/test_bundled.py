"""The model that comes with the package: whole, small, offline, and better than a compressor."""

import lzma
import math
import os
import subprocess
import sys
from pathlib import Path

import bluejay
from bluejay.checkpoints.catalogue import CATALOGUE, BundledSource
from bluejay.checkpoints.locate import bundled_folder
from bluejay.checkpoints.native import verify

PASSAGE = Path(__file__).parent.parent / "golden" / "smollm2" / "passage.txt"
SOURCE = CATALOGUE["bluejay-tiny"].source
assert isinstance(SOURCE, BundledSource)
FOLDER = bundled_folder(SOURCE)


def test_it_is_whole_and_small() -> None:
    assert verify(FOLDER) == []
    size = sum(path.stat().st_size for path in FOLDER.iterdir())
    assert size <= 12_000_000
    entry = CATALOGUE["bluejay-tiny"]
    assert entry.disk_bytes >= (FOLDER / "model.safetensors").stat().st_size


def test_its_card_says_what_it_is() -> None:
    card = (FOLDER / "README.md").read_text()
    for promised in ("CC0", "Apache-2.0", "bits per byte", "Kneser-Ney", "held out", "Limits"):
        assert promised in card, promised


def test_it_writes_without_a_network_or_a_cache(tmp_path: Path) -> None:
    """In a process that cannot reach anything, with an empty home."""
    script = (
        "import socket\n"
        "def refuse(*_, **__): raise AssertionError('a socket was opened')\n"
        "socket.socket.connect = refuse\n"
        "import bluejay\n"
        "lm = bluejay.load('bluejay-tiny')\n"
        "print(lm.generate('Once upon a time', max_tokens=20, seed=1))\n"
    )
    places = {"HOME": str(tmp_path), "BLUEJAY_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | places,
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout.split()) > 5


def test_it_knows_english_better_than_a_compressor() -> None:
    text = PASSAGE.read_text()
    lm = bluejay.load("bluejay-tiny")
    ids = lm.prompt_ids(text)
    window, nats = lm.config.context_length, 0.0
    for begin in range(0, len(ids) - 1, window - 1):
        piece = ids[begin : begin + window]
        nats -= lm.score_ids(piece[:1], piece[1:])[0]
    num_bytes = len(text.encode())
    bits_per_byte = nats / math.log(2) / num_bytes
    print(f"{bits_per_byte:.3f} bits per byte")
    assert bits_per_byte < 2.0 < 8 * len(lzma.compress(text.encode())) / num_bytes


def test_its_suggestions_are_words() -> None:
    found = bluejay.load("bluejay-tiny").suggest("He was a very", k=5)
    words = [word for word, _ in found]
    assert len({word.lower() for word in words}) == 5
    assert all(word.isalpha() for word in words)
    assert "good" in words or "little" in words
    assert 0.05 < sum(probability for _, probability in found) <= 1.0
