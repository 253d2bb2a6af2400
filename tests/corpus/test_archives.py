"""Archives from strangers: what is read, what is passed over, what is refused."""

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest
import zstandard

from bluejay.core.errors import DataError, UsageError
from bluejay.corpus import archives
from bluejay.corpus.archives import members, source_bytes
from bluejay.corpus.document import RejectedError
from mini_books import tar_bytes, write_files

FILES = {"a/one.txt": b"one " * 40_000, "b/two.txt": b"two"}


def names_and_sizes(source: Path) -> dict[str, int]:
    return {member.name: len(member.read()) for member in members(source)}


def compressed(data: bytes) -> bytes:
    return zstandard.ZstdCompressor().compress(data)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".tar.zst"])
def test_every_kind_of_archive_gives_its_files(tmp_path: Path, suffix: str) -> None:
    data = tar_bytes(FILES)
    packed = {".tar": data, ".tar.zst": compressed(data)}.get(suffix) or gzip.compress(data)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(packed)
    assert names_and_sizes(path) == {"a/one.txt": 160_000, "b/two.txt": 3}
    counted: list[int] = []
    for _ in members(path, counted.append):
        pass
    assert sum(counted) == len(packed) == source_bytes(path)


def test_a_folder_is_read_in_order_without_links_and_hidden_files(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "f", FILES | {".git/x.txt": b"no", "a/.hidden.txt": b"no"})
    (folder / "inner.tar").write_bytes(tar_bytes({"c.txt": b"in"}))
    (folder / "lines.jsonl.zst").write_bytes(compressed(b"{}\n"))
    (folder / "link.txt").symlink_to(folder / "a" / "one.txt")
    (folder / "loop").symlink_to(folder)
    found = names_and_sizes(folder)
    assert list(found) == ["c.txt", "f/lines.jsonl", "f/a/one.txt", "f/b/two.txt"]


def test_several_frames_are_one_stream(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.zst"
    path.write_bytes(compressed(b"first") + compressed(b"second") * 2)
    member = next(found := members(path))
    assert member.name == "x.jsonl"
    assert member.read() == b"firstsecondsecond"
    assert list(found) == []


def hostile_members() -> list[tarfile.TarInfo]:
    infos = [tarfile.TarInfo(n) for n in ("/etc/a.txt", "../a.txt", "a/../../b.txt", ".ssh/c.txt")]
    infos.append(tarfile.TarInfo("new\nline.txt"))
    for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE):
        info = tarfile.TarInfo("special.txt")
        info.type, info.linkname = kind, "/etc/passwd"
        infos.append(info)
    return infos


def test_hostile_members_are_passed_over_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for info in hostile_members():
            archive.addfile(info, io.BytesIO())
        good = tarfile.TarInfo("./good.txt")
        good.size = 2
        archive.addfile(good, io.BytesIO(b"ok"))
    before = sorted(os.listdir(tmp_path))
    assert names_and_sizes(path) == {"good.txt": 2}
    assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.8])
def test_an_archive_that_is_cut_off_is_refused(tmp_path: Path, suffix: str, share: float) -> None:
    data = tar_bytes({f"{n}.txt": os.urandom(700) for n in range(40)})
    packed = {".tar": data, ".tar.gz": gzip.compress(data), ".tar.zst": compressed(data)}[suffix]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(packed[: int(len(packed) * share)])
    with pytest.raises(DataError, match="fetch it again") as caught:
        names_and_sizes(path)
    assert str(caught.value).count("\n") == 0


def test_an_archive_cut_between_two_files_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(tar_bytes({"a.txt": b"x" * 512, "b.txt": b"y" * 512})[:1024])
    with pytest.raises(DataError, match="it is cut off"):
        names_and_sizes(path)


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz", "x.tar.zst", "x.txt.zst"])
def test_noise_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"this is no archive at all, whatever its name says" * 50)
    with pytest.raises(DataError, match="fetch it again"):
        names_and_sizes(path)


def test_a_bomb_is_not_unpacked_into_memory(tmp_path: Path) -> None:
    path = tmp_path / "x.txt.zst"
    path.write_bytes(compressed(bytes(1 << 28)))
    for member in members(path):
        with pytest.raises(RejectedError, match="larger than 16 MiB"):
            member.read(1 << 24)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_headers_that_claim_gigabytes_are_refused(tmp_path: Path, kind: bytes) -> None:
    info = tarfile.TarInfo("x.txt")
    info.type, info.size = kind, 1 << 32
    path = tmp_path / "x.tar.zst"
    path.write_bytes(compressed(info.tobuf(tarfile.GNU_FORMAT) + bytes(1 << 24)))
    with pytest.raises(DataError, match="a header of 4,294,967,296 bytes"):
        names_and_sizes(path)


def test_a_file_that_may_not_be_read_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, *_arguments: object, **_options: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    (tmp_path / "x.txt").write_text("x")
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(DataError, match=r"x\.txt cannot be read \(Permission denied\)"):
        names_and_sizes(tmp_path)


def test_without_zstandard_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(_name: str) -> None:
        raise ImportError

    path = tmp_path / "x.tar.zst"
    path.write_bytes(compressed(tar_bytes(FILES)))
    monkeypatch.setattr(archives.importlib, "import_module", missing)
    with pytest.raises(UsageError, match=r"install bluejay\[train\]"):
        names_and_sizes(path)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no\.txt"):
        names_and_sizes(tmp_path / "no.txt")
