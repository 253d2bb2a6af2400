"""The cache of pulled models: its place, its lock, what gets in and what gets out."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest

from bluejay.checkpoints import model_cache
from bluejay.checkpoints.model_cache import (
    attempt_folder,
    cache_bytes,
    cache_root,
    cached_model,
    cached_models,
    exclusive,
    partial_folder,
    publish,
    remove,
    require_space,
    size_text,
    sweep_others,
    writing_to_cache,
)
from bluejay.core.errors import CheckpointError, DiskError, UsageError

Usage = namedtuple("Usage", "total used free")
HOLD = """
import os, sys, time
from bluejay.checkpoints.model_cache import exclusive
with exclusive("tiny", on_wait=print):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BLUEJAY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def install(name: str, data: bytes = b"12345") -> Path:
    folder = attempt_folder(name) / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(data)
    return publish(folder, name)


def test_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLUEJAY_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", "/home/jay")
    assert cache_root() == Path("/home/jay/.cache/bluejay")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/is/ignored")
    assert cache_root() == Path("/home/jay/.cache/bluejay")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/jay")
    assert cache_root() == Path("/var/cache/jay/bluejay")
    monkeypatch.setenv("BLUEJAY_CACHE", "~/models")
    assert cache_root() == Path("/home/jay/models")
    monkeypatch.setenv("BLUEJAY_CACHE", "here")
    assert cache_root() == Path.cwd() / "here"


def test_an_empty_cache_is_empty_and_nothing_is_made(cache: Path) -> None:
    assert cached_models() == []
    assert cache_bytes() == 0
    assert cached_model("tiny") is None
    assert not cache.exists()


def test_published_models_are_listed_with_their_size(cache: Path) -> None:
    path = install("tiny")
    partial_folder("other").joinpath("half.whl").write_bytes(b"123")
    assert path == cache / "models" / "tiny"
    assert [(m.name, m.path, m.num_bytes) for m in cached_models()] == [("tiny", path, 5)]
    assert cached_model("tiny") == path
    assert cached_model("other") is None
    # The lock files are not there yet; the partial download counts.
    assert cache_bytes() == 8


def test_others_can_read_a_published_model(cache: Path) -> None:
    assert install("tiny").stat().st_mode & 0o777 == 0o755


def test_remove_takes_the_model_and_its_leftovers(cache: Path) -> None:
    install("tiny")
    install("kept")
    partial_folder("tiny").joinpath("half.whl").write_bytes(b"123")
    assert remove("tiny") == 8
    assert [model.name for model in cached_models()] == ["kept"]
    assert not (cache / "partial" / "tiny").exists()


def test_remove_takes_an_unfinished_pull_alone(cache: Path) -> None:
    partial_folder("tiny").joinpath("half.whl").write_bytes(b"123")
    assert remove("tiny") == 3
    with pytest.raises(UsageError, match="nothing to remove"):
        remove("tiny")


@pytest.mark.parametrize("name", ["", ".", "..", "../..", "/etc", "models/tiny", "tiny/", "~"])
def test_remove_refuses_paths(cache: Path, name: str) -> None:
    install("tiny")
    with pytest.raises(UsageError):
        remove(name)
    assert cached_model("tiny")


def test_remove_refuses_a_link_and_leaves_its_target(cache: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis").write_text("years")
    (cache / "models").mkdir(parents=True)
    (cache / "models" / "tiny").symlink_to(precious)
    with pytest.raises(UsageError, match="is a link"):
        remove("tiny")
    assert (precious / "thesis").read_text() == "years"


def test_remove_follows_no_link_inside_a_model(cache: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis").write_text("years")
    (install("tiny") / "link").symlink_to(precious)
    remove("tiny")
    assert (precious / "thesis").read_text() == "years"


def test_remove_refuses_a_model_that_another_process_pulls(cache: Path) -> None:
    install("tiny")
    process = subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match=f"pulled by process {process.pid}"):
            remove("tiny")
        process.kill()
    # A killed holder holds nothing any more.
    assert remove("tiny") == 5


def test_the_second_waits_for_the_first_and_is_told_its_process(cache: Path) -> None:
    told: list[int | None] = []
    order: list[str] = []

    def second() -> None:
        with exclusive("tiny", on_wait=told.append):
            order.append("second")

    thread = threading.Thread(target=second)
    with exclusive("tiny", on_wait=told.append):
        thread.start()
        while not told:
            time.sleep(0.01)
        order.append("first")
    thread.join()
    assert told == [os.getpid()]
    assert order == ["first", "second"]


def test_waiting_can_be_interrupted(cache: Path) -> None:
    with exclusive("tiny", on_wait=print):
        process = subprocess.Popen(
            [sys.executable, "-u", "-c", HOLD],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert process.stdout is not None
        with process:
            assert process.stdout.readline() == f"{os.getpid()}\n"
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=10) != 0


def test_sweep_spares_what_is_worked_on_and_what_is_of_use(cache: Path) -> None:
    for name in ("busy", "idle", "useful"):
        (attempt_folder(name) / "half").write_bytes(b"1")
    (partial_folder("useful") / "whole.whl").write_bytes(b"1")
    with exclusive("busy", on_wait=print):
        sweep_others()
    left = {
        str(p.relative_to(cache / "partial")) for p in (cache / "partial").rglob("*") if p.is_file()
    }
    assert {Path(path).name for path in left} == {"half", "whole.whl"}
    assert {Path(path).parts[0] for path in left} == {"busy", "useful"}
    assert not (cache / "partial" / "idle").exists()


def test_space_is_named_in_bytes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_cache.shutil, "disk_usage", lambda path: Usage(10**9, 0, 20_000_000))
    require_space(cache / "models", 1_000_000, purpose="Pulling tiny")
    with pytest.raises(
        DiskError, match=r"Pulling tiny needs 5,000,000 bytes.*20,000,000"
    ) as caught:
        require_space(cache / "models", 5_000_000, purpose="Pulling tiny")
    assert "BLUEJAY_CACHE" in str(caught.value)
    assert not cache.exists()


def test_a_cache_that_cannot_be_written_is_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("BLUEJAY_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DiskError, match="cannot be written"), writing_to_cache():
        attempt_folder("tiny")


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1000, "1 kB"),
        (98_362_432, "98.4 MB"),
        (538_000_000, "538 MB"),
        (999_600_000, "1 GB"),
        (12_100_000_000, "12.1 GB"),
        (1_520_000_000, "1.52 GB"),
        (5 * 10**15, "5000 TB"),
    ],
)
def test_sizes_for_people(num_bytes: int, text: str) -> None:
    assert size_text(num_bytes) == text
