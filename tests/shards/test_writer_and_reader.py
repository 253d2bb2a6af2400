"""Shards as written and read back: ids, rows, weights, and everything that can be wrong."""

import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bluejay.core.errors import DataError, DiskError, UsageError
from bluejay.shards.format import MANIFEST
from bluejay.shards.reader import TokenShards
from bluejay.shards.writer import ShardWriter

SHA = "ab" * 32


def written(
    folder: Path, documents: list[list[int]], *, vocab_size: int = 4096, **options: Any
) -> TokenShards:
    with ShardWriter(folder, tokenizer_sha256=SHA, vocab_size=vocab_size, **options) as writer:
        for ids in documents:
            writer.append(ids, num_text_bytes=3 * len(ids))
        writer.finish({"source": "a test"})
    return TokenShards(folder)


@given(
    documents=st.lists(st.lists(st.integers(0, 4095), max_size=40), max_size=8),
    tokens_per_file=st.integers(1, 30),
    data=st.data(),
)
def test_any_range_reads_back_across_file_borders(
    tmp_path_factory: pytest.TempPathFactory,
    documents: list[list[int]],
    tokens_per_file: int,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("shards") / "s"
    shards = written(folder, documents, tokens_per_file=tokens_per_file)
    ids = [i for document in documents for i in document]
    assert shards.num_tokens == len(ids)
    assert shards.manifest.num_documents == len(documents)
    assert shards.manifest.num_text_bytes == 3 * len(ids)
    start = data.draw(st.integers(0, len(ids)))
    stop = data.draw(st.integers(start, len(ids)))
    found = shards.read(start, stop)
    assert found.dtype == np.int32
    assert found.tolist() == ids[start:stop]
    assert shards.read_weights(start, stop).tolist() == [1.0] * (stop - start)
    assert shards.verify() == []


@pytest.mark.parametrize(("vocab_size", "width"), [(65536, 2), (65537, 4)])
def test_ids_are_stored_little_endian_in_the_smallest_type(
    tmp_path: Path, vocab_size: int, width: int
) -> None:
    ids = [0, 1, vocab_size - 1]
    shards = written(tmp_path / "s", [ids], vocab_size=vocab_size)
    raw = (tmp_path / "s" / "tokens-00000.bin").read_bytes()
    assert raw == b"".join(i.to_bytes(width, "little") for i in ids)
    assert shards.manifest.dtype == f"uint{8 * width}"
    assert shards.read(0, 3).tolist() == ids


def test_the_manifest_says_everything_that_was_promised(tmp_path: Path) -> None:
    written(tmp_path / "s", [[1, 2, 3], [4]], tokens_per_file=3)
    document = json.loads((tmp_path / "s" / MANIFEST).read_text())
    files = document.pop("files")
    assert document == {
        "format": "bluejay-shards",
        "format_version": 1,
        "dtype": "uint16",
        "tokenizer_sha256": SHA,
        "vocab_size": 4096,
        "row_length": None,
        "has_weights": False,
        "num_tokens": 4,
        "num_documents": 2,
        "num_text_bytes": 12,
        "provenance": {"source": "a test"},
    }
    assert [(f["name"], f["num_tokens"], f["bytes"]) for f in files] == [
        ("tokens-00000.bin", 3, 6),
        ("tokens-00001.bin", 1, 2),
    ]


def test_rows_stay_whole_in_their_files(tmp_path: Path) -> None:
    documents = [list(range(8)), list(range(4))]
    shards = written(tmp_path / "s", documents, row_length=4, tokens_per_file=6)
    assert [file.num_tokens for file in shards.manifest.files] == [4, 4, 4]
    with pytest.raises(DataError, match="5 ids are not whole rows of 4"):
        written(tmp_path / "t", [list(range(5))], row_length=4)
    with pytest.raises(UsageError, match="files of 3 tokens"):
        written(tmp_path / "t", [], row_length=4, tokens_per_file=3)


def test_weights_lie_beside_the_ids(tmp_path: Path) -> None:
    options: dict[str, Any] = {"tokenizer_sha256": SHA, "vocab_size": 10, "has_weights": True}
    with ShardWriter(tmp_path / "s", tokens_per_file=2, **options) as writer:
        writer.append([1, 2, 3], num_text_bytes=3, weights=[0.0, 0.5, 1.5])
        writer.append(np.array([4], np.uint16), num_text_bytes=1)
    shards = TokenShards(tmp_path / "s")
    assert shards.read_weights(1, 4).tolist() == [0.5, 1.5, 1.0]
    assert (tmp_path / "s" / "weights-00001.bin").stat().st_size == 8
    assert shards.verify() == []
    with (
        pytest.raises(DataError, match="do not fit 2 ids"),
        ShardWriter(tmp_path / "t", **options) as writer,
    ):
        writer.append([1, 2], num_text_bytes=2, weights=[1.0, float("nan")])
    with (
        pytest.raises(UsageError, match="has_weights"),
        ShardWriter(tmp_path / "t", tokenizer_sha256=SHA, vocab_size=10) as writer,
    ):
        writer.append([1], num_text_bytes=2, weights=[1.0])
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("ids", "part"),
    [
        ([1, 4096], "id 4096 has no place in a vocabulary of 4096"),
        ([-1, 5000], "id -1"),
        ([1.5], "not a list of token ids"),
        ([[1, 2]], "not a list of token ids"),
    ],
)
def test_ids_that_do_not_fit_leave_nothing_behind(tmp_path: Path, ids: Any, part: str) -> None:
    with pytest.raises(DataError, match=part):
        written(tmp_path / "s", [[1, 2], np.asarray(ids)])  # type: ignore[list-item]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    shards = written(tmp_path / "s", [[1, 2]])
    with pytest.raises(UsageError, match="exists already"):
        written(tmp_path / "s", [[3]])
    assert shards.read(0, 2).tolist() == [1, 2]


def test_a_full_disk_is_a_disk_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match="the disk is full"):
        written(tmp_path / "s", [[1, 2]])
    assert list(tmp_path.iterdir()) == []


def test_ranges_outside_are_refused(tmp_path: Path) -> None:
    shards = written(tmp_path / "s", [[1, 2]])
    for start, stop in ((-1, 1), (0, 3), (2, 1)):
        with pytest.raises(UsageError, match="not in shards of 2 tokens"):
            shards.read(start, stop)
        with pytest.raises(UsageError, match="not in shards of 2 tokens"):
            shards.read_weights(start, stop)


def refusal(folder: Path) -> str:
    """The one sentence that opening must give."""
    with pytest.raises(DataError) as caught:
        TokenShards(folder)
    sentence = str(caught.value)
    assert sentence.isprintable()
    assert str(folder) in sentence
    return sentence


def test_folders_that_are_no_shards(tmp_path: Path) -> None:
    assert "bluejay prepare" in refusal(tmp_path)
    (tmp_path / MANIFEST).write_bytes(b"\xff{")
    assert "no JSON" in refusal(tmp_path)
    (tmp_path / MANIFEST).write_text("[" * 100_000)
    assert "no JSON" in refusal(tmp_path)
    (tmp_path / MANIFEST).write_text('{"format": "bluejay-checkpoint", "format_version": 1}')
    assert "not one of token shards" in refusal(tmp_path)
    (tmp_path / MANIFEST).write_text('{"format": "bluejay-shards", "format_version": 2}')
    assert "only 1 can be read" in refusal(tmp_path)


def test_missing_and_cut_files_are_found_on_opening(tmp_path: Path) -> None:
    written(tmp_path / "s", [[1, 2, 3]])
    file = tmp_path / "s" / "tokens-00000.bin"
    file.write_bytes(file.read_bytes()[:-2])
    assert "tokens-00000.bin has 4 bytes, but its manifest says 6" in refusal(tmp_path / "s")
    file.unlink()
    assert "tokens-00000.bin is missing" in refusal(tmp_path / "s")


def test_a_changed_byte_is_found_by_verify_and_an_impossible_id_by_reading(tmp_path: Path) -> None:
    shards = written(tmp_path / "s", [[1, 2, 3]])
    (tmp_path / "s" / "tokens-00000.bin").write_bytes(b"\x01\x00\x03\x00\xff\xff")
    [problem] = shards.verify()
    assert problem.startswith("tokens-00000.bin is damaged")
    with pytest.raises(DataError, match="outside its vocabulary of 4096"):
        TokenShards(tmp_path / "s").read(0, 3)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"num_tokens": 4}, "num_tokens"),
        ({"num_tokens": True}, "num_tokens"),
        ({"num_documents": -1}, "num_documents"),
        ({"num_text_bytes": "9"}, "num_text_bytes"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"vocab_size": 70000}, "dtype"),
        ({"dtype": "float64"}, "dtype"),
        ({"dtype": ["uint16"]}, "dtype"),
        ({"row_length": 2}, "row_length"),
        ({"row_length": 0}, "row_length"),
        ({"has_weights": 1}, "has_weights"),
        ({"has_weights": True}, "files"),
        ({"tokenizer_sha256": "abc"}, "tokenizer_sha256"),
        ({"provenance": None}, "provenance"),
        ({"files": {}}, "files"),
        ({"files": [7]}, "files"),
        ({"files": []}, "num_tokens"),
    ],
)
def test_a_manifest_that_was_tampered_with(
    tmp_path: Path, change: dict[str, Any], key: str
) -> None:
    written(tmp_path / "s", [[1, 2, 3]])
    path = tmp_path / "s" / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert f"{key} in its MANIFEST.json is" in refusal(tmp_path / "s")


@pytest.mark.parametrize(
    "change",
    [
        {"name": "../../etc/passwd"},
        {"name": "/etc/passwd"},
        {"name": "tokens-00001.bin"},
        {"num_tokens": 2**62, "bytes": 2**63},
        {"bytes": 8},
        {"sha256": "\x1b[2J"},
        {"weights_sha256": SHA},
    ],
)
def test_a_file_entry_that_was_tampered_with(tmp_path: Path, change: dict[str, Any]) -> None:
    written(tmp_path / "s", [[1, 2, 3]])
    path = tmp_path / "s" / MANIFEST
    document = json.loads(path.read_text())
    document["files"][0] |= change
    path.write_text(json.dumps(document))
    assert "files in its MANIFEST.json is" in refusal(tmp_path / "s")


def test_a_manifest_without_a_key_says_which(tmp_path: Path) -> None:
    written(tmp_path / "s", [[1]])
    path = tmp_path / "s" / MANIFEST
    document = json.loads(path.read_text())
    del document["vocab_size"]
    path.write_text(json.dumps(document))
    assert "vocab_size in its MANIFEST.json is missing" in refusal(tmp_path / "s")
