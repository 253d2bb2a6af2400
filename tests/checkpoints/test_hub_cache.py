"""Reading Hugging Face's cache, and choosing the files of a repository."""

from pathlib import Path

import pytest

from bluejay.checkpoints.hub_cache import (
    HubId,
    cached_snapshot,
    has_tokenizer,
    hub_cache_root,
    parse_hub_id,
    weight_files,
)

COMMIT = "47e169305d2e8376be1d31e765533382721b2cc1"


@pytest.mark.parametrize(
    ("text", "repository", "revision"),
    [
        ("EleutherAI/gpt-j-6b", "EleutherAI/gpt-j-6b", "main"),
        ("EleutherAI/gpt-j-6b@float16", "EleutherAI/gpt-j-6b", "float16"),
        ("a/b@refs/pr/6", "a/b", "refs/pr/6"),
        (f"a/b@{COMMIT}", "a/b", COMMIT),
    ],
)
def test_ids(text: str, repository: str, revision: str) -> None:
    hub_id = parse_hub_id(text)
    assert hub_id == HubId(repository=repository, revision=revision)
    assert str(hub_id) == text


@pytest.mark.parametrize(
    "text",
    ["", "gpt2", "a/", "/b", "a/b/c", "../b", "a/..", "a/b@", "a/b@..", "a/b@../../x", "a/b@/etc",
     "a/b@x/../y", "a--b/c", "a/b@x//y", "a/b c", "a\\b/c", "a/b\n", ".a/b", "a/.b", "-a/b",
     "a/b@-x", "a" * 97 + "/b", "a/b@" + "x" * 129],
)  # fmt: skip
def test_what_is_no_id(text: str) -> None:
    assert parse_hub_id(text) is None


def test_place(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/jay")
    assert hub_cache_root() == Path("/home/jay/.cache/huggingface/hub")
    monkeypatch.setenv("HF_HOME", "$HOME/hf")
    assert hub_cache_root() == Path("/home/jay/hf/hub")
    monkeypatch.setenv("HF_HUB_CACHE", "~/blobs")
    assert hub_cache_root() == Path("/home/jay/blobs")


SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        (["pytorch_model.bin", "flax_model.msgpack", "tf_model.h5"], ["pytorch_model.bin"]),
        ([INDEX, *SHARDS, "pytorch_model.bin"], [INDEX, *SHARDS]),
        # As in a proposed change to a real repository: an index whose shards never came.
        ([INDEX, "pytorch_model.bin"], ["pytorch_model.bin"]),
        ([INDEX, SHARDS[0], "pytorch_model.bin"], ["pytorch_model.bin"]),
        (SHARDS, []),
        ([INDEX, "model-00001-of-99999.safetensors"], []),
        ([INDEX, "model-00000-of-00000.safetensors"], []),
        ([INDEX, "../model-00001-of-00001.safetensors"], []),
        (["model.gguf", "tf_model.h5"], []),
        ([], []),
    ],
)
def test_one_complete_kind_of_weights_is_chosen(names: list[str], chosen: list[str]) -> None:
    assert weight_files([*names, "config.json"]) == chosen
    assert weight_files(names) == []


def test_both_forms_of_tokenizer_are_known() -> None:
    assert has_tokenizer(["tokenizer.json"])
    assert has_tokenizer(["vocab.json", "merges.txt"])
    assert not has_tokenizer(["vocab.json", "tokenizer_config.json"])


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository as huggingface_hub leaves it: links into blobs, one of them dangling."""
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--owner--name"
    snapshot = folder / "snapshots" / COMMIT
    for path in (snapshot, folder / "blobs", folder / "refs" / "pr"):
        path.mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (folder / "blobs" / f"hash-of-{name}").write_text("{}")
        (snapshot / name).symlink_to(f"../../blobs/hash-of-{name}")
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "refs" / "pr" / "6").write_text("f" * 40)
    return folder


def test_a_snapshot_is_found_by_branch_and_by_commit(repository: Path) -> None:
    snapshot = repository / "snapshots" / COMMIT
    assert cached_snapshot(HubId(repository="owner/name", revision="main")) == snapshot
    assert cached_snapshot(HubId(repository="owner/name", revision=COMMIT)) == snapshot
    assert cached_snapshot(HubId(repository="owner/name", revision="pr/6")) is None
    assert cached_snapshot(HubId(repository="owner/name", revision="other")) is None
    assert cached_snapshot(HubId(repository="owner/other", revision="main")) is None


def test_a_snapshot_without_its_weights_is_not_there(repository: Path) -> None:
    (repository / "blobs" / "hash-of-model.safetensors").unlink()
    assert cached_snapshot(HubId(repository="owner/name", revision="main")) is None


@pytest.mark.parametrize("text", ["../../../etc", "", "a" * 40 + "/..", "\xff" * 40, "F" * 40])
def test_a_reference_that_is_no_commit_leads_nowhere(repository: Path, text: str) -> None:
    (repository / "refs" / "main").write_text(text)
    assert cached_snapshot(HubId(repository="owner/name", revision="main")) is None
