"""Pulling from a hub that runs on this machine, through the real huggingface_hub."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bluejay.checkpoints.catalogue import CATALOGUE
from bluejay.checkpoints.hub_cache import HubId
from bluejay.checkpoints.hub_download import explained_hub_error
from bluejay.checkpoints.pull import pull
from bluejay.core.errors import CheckpointError, DiskError
from fake_hub import COMMIT, FakeHub, fake_hub, sha256
from fake_wheel import closed_port

# huggingface_hub hands over what it received in pieces of 10 MiB.
PIECE = 10 * 2**20
WEIGHTS = bytes(range(256)) * (12 * 2**20 // 256)
CODE = b"raise SystemExit('code of a repository was run')\n"
REPOSITORY = {
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "README.md": b"# A model",
    "modeling_custom.py": CODE,
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": WEIGHTS + b"torch",
}
# huggingface_hub reads its environment when it is imported, so every case has its own process.
CHILD = """
import sys
from bluejay.checkpoints.pull import pull
from bluejay.core.errors import BluejayError
for name in sys.argv[1:]:
    try:
        print(pull(name))
    except BluejayError as error:
        print(type(error).__name__, error)
"""


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    sharded = {
        "config.json": b"{}",
        "vocab.json": b"{}",
        "merges.txt": b"",
        "pytorch_model.bin.index.json": b"{}",
        "pytorch_model-00001-of-00002.bin": b"one",
        "pytorch_model-00002-of-00002.bin": b"two",
        "model.safetensors.index.json": b"{}",
        "../../escape.safetensors": b"x",
    }
    repositories = {
        "owner/name": REPOSITORY,
        "owner/sharded": sharded,
        "owner/gguf": {"config.json": b"{}", "name.Q4_0.gguf": b"GGUF"},
        "owner/empty": {"config.json": b"{}"},
    }
    with fake_hub(repositories) as running:
        yield running


@pytest.fixture
def environment(tmp_path: Path, hub: FakeHub) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("HF_")}
    return kept | {
        "BLUEJAY_CACHE": str(tmp_path / "cache"),
        "HF_HOME": str(tmp_path / "hf"),
        "HF_ENDPOINT": hub.address,
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "hf" / "hub" / "models--owner--name"


def pulled(environment: dict[str, str], *names: str) -> list[str]:
    """What pulling each of the names gave: its path, or its error."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *names],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(names)  # every error is one line
    return lines


def test_one_kind_of_weights_and_no_code_arrives(
    hub: FakeHub, environment: dict[str, str], folder: Path
) -> None:
    (line,) = pulled(environment, "owner/name")
    path = Path(line)
    assert path == folder / "snapshots" / COMMIT
    assert sorted(file.name for file in path.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    assert (path / "model.safetensors").read_bytes() == WEIGHTS
    assert (path / "model.safetensors").resolve() == folder / "blobs" / sha256(WEIGHTS)
    # The library itself finds it by its branch, so other programs can use it too.
    assert (folder / "refs" / "main").read_text() == COMMIT
    assert not [path for path in folder.rglob("*") if path.name.endswith(".bluejay")]
    weights = [text for text in hub.large_gets() if "safetensors" in text]
    assert len(weights) == 1
    # Here and complete: the hub is not asked again, and it works without a network.
    hub.requests.clear()
    assert pulled(environment | {"HF_HUB_OFFLINE": "1"}, "owner/name") == [line]
    assert hub.requests == []


def test_complete_shards_are_preferred_to_an_index_without_any(
    environment: dict[str, str], tmp_path: Path
) -> None:
    (line,) = pulled(environment, "owner/sharded")
    names = sorted(file.name for file in Path(line).iterdir())
    assert names == [
        "config.json",
        "merges.txt",
        "pytorch_model-00001-of-00002.bin",
        "pytorch_model-00002-of-00002.bin",
        "pytorch_model.bin.index.json",
        "vocab.json",
    ]
    assert not list(tmp_path.rglob("escape*"))


def test_a_dropped_connection_is_taken_up_where_it_broke(
    hub: FakeHub, environment: dict[str, str]
) -> None:
    hub.stop_after = 11 * 2**20
    (line,) = pulled(environment, "owner/name")
    assert (Path(line) / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [text.partition("bytes=")[2] for text in hub.large_gets() if "safetensors" in text]
    assert ranges == ["", f"{PIECE}-"]


def test_a_killed_pull_is_taken_up_by_the_next_one(
    hub: FakeHub, environment: dict[str, str], folder: Path
) -> None:
    hub.stop_after, hub.hold = 11 * 2**20, True
    partial = folder / "blobs" / f"{sha256(WEIGHTS)}.bluejay"
    with subprocess.Popen([sys.executable, "-c", CHILD, "owner/name"], env=environment) as process:
        assert hub.stopped.wait(timeout=30)
        while partial.stat().st_size < PIECE:
            time.sleep(0.01)
        process.kill()
    assert not (folder / "refs").exists()  # nothing that looks like a model
    hub.requests.clear()
    (line,) = pulled(environment, "owner/name")
    assert (Path(line) / "model.safetensors").read_bytes() == WEIGHTS
    ranges = [text.partition("bytes=")[2] for text in hub.large_gets() if "safetensors" in text]
    assert ranges == [f"{PIECE}-"]


def test_damage_on_the_way_is_refused_with_both_hashes_and_not_kept(
    hub: FakeHub, environment: dict[str, str], folder: Path
) -> None:
    hub.corrupt = True
    (line,) = pulled(environment, "owner/name")
    assert line.startswith("CheckpointError")
    assert sha256(WEIGHTS) in line
    assert sha256(b"X" + WEIGHTS[1:]) in line
    assert not list((folder / "blobs").iterdir())
    hub.corrupt = False
    (line,) = pulled(environment, "owner/name")
    assert (Path(line) / "model.safetensors").read_bytes() == WEIGHTS


def test_refusals_are_one_sentence_with_a_remedy(environment: dict[str, str]) -> None:
    lines = pulled(
        environment,
        "owner/missing",
        "owner/name@missing",
        "owner/gated",
        "owner/broken",
        "owner/gguf",
        "owner/empty",
    )
    expected = [
        "UsageError There is no model owner/missing on the hub",
        "UsageError owner/name has no revision 'missing'",
        "CheckpointError owner/gated is only given to people who accepted its terms",
        "CheckpointError The hub answered 500",
        "CheckpointError owner/gguf holds GGUF files to choose from",
        "CheckpointError owner/empty holds no weights that can be read",
    ]
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start)


def test_offline_is_one_sentence(environment: dict[str, str]) -> None:
    (line,) = pulled(environment | {"HF_ENDPOINT": closed_port()}, "owner/name")
    assert line.startswith("CheckpointError You seem to be offline")
    assert "bluejay pull owner/name" in line
    (line,) = pulled(environment | {"HF_HUB_OFFLINE": "1"}, "gpt-j-6b")
    assert "HF_HUB_OFFLINE" in line


def test_without_the_extra_the_remedy_is_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLUEJAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match=r"pip install 'bluejay\[hub\]'"):
        pull("gpt2")
    assert "gpt2" in CATALOGUE


def test_a_full_disk_and_a_locked_one_are_told_apart() -> None:
    hub_id = HubId(repository="owner/name", revision="main")
    full = explained_hub_error(OSError(28, "No space left on device"), hub_id)
    locked = explained_hub_error(PermissionError(13, "Permission denied"), hub_id)
    assert isinstance(full, DiskError)
    assert "filled up" in str(full)
    assert isinstance(locked, DiskError)
    assert "cannot be written" in str(locked)
