"""A process killed while it writes a compiled program must not spoil the cache for all others."""

from pathlib import Path

from bluejay.runs.compile_cache import remove_torn_entries


def test_torn_entries_go_and_whole_ones_stay(tmp_path: Path) -> None:
    for name in ("whole-cache", "whole-atime", "torn-cache", "other"):
        (tmp_path / name).write_bytes(b"x")
    remove_torn_entries(tmp_path)
    left = sorted(path.name for path in tmp_path.iterdir() if path.name != ".lockfile")
    assert left == ["other", "whole-atime", "whole-cache"]


def test_a_cache_that_is_not_there_is_none_to_mend(tmp_path: Path) -> None:
    remove_torn_entries(tmp_path / "none")
    assert not (tmp_path / "none").exists()
