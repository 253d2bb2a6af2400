"""What a user types, and the model it leads to."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from bluejay.checkpoints import locate as locate_module
from bluejay.checkpoints.catalogue import CATALOGUE, BundledSource
from bluejay.checkpoints.locate import best_present, locate, machine_memory, present_models
from bluejay.checkpoints.model_cache import attempt_folder, publish
from bluejay.core.errors import BluejayError, CheckpointError, MemoryLimitError, UsageError

COMMIT = "47e169305d2e8376be1d31e765533382721b2cc1"


@pytest.fixture(autouse=True)
def _own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLUEJAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(locate_module, "_BUNDLED_ROOT", tmp_path / "bundled")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def install(name: str, *, file: str = "model.safetensors", num_bytes: int = 1000) -> Path:
    folder = attempt_folder(name) / "model"
    folder.mkdir()
    (folder / file).write_bytes(bytes(num_bytes))
    (folder / "config.json").write_text("{}")
    return publish(folder, name)


def install_from_hub(repository: str, *, revision: str = "main", num_bytes: int = 1000) -> Path:
    folder = Path.cwd().parent / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / COMMIT
    for path in (snapshot, folder / "blobs", folder / "refs"):
        path.mkdir(parents=True)
    (folder / "blobs" / "b").write_bytes(bytes(num_bytes))
    (snapshot / "model.safetensors").symlink_to("../../blobs/b")
    (snapshot / "config.json").write_text("{}")
    (folder / "refs" / revision).write_text(COMMIT)
    return snapshot


@pytest.fixture
def bundled(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bundled model, listed before all others as bundled models are."""
    source = BundledSource(folder="jay")
    entry = replace(CATALOGUE["gpt2"], name="jay", source=source, parameters=1000)
    monkeypatch.setattr(locate_module, "CATALOGUE", {"jay": entry} | CATALOGUE)
    monkeypatch.setitem(CATALOGUE, "jay", entry)
    folder = Path.cwd().parent / "bundled" / "jay"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(100))
    return folder


def test_a_pulled_name_in_any_case() -> None:
    path = install("smollm2-135m-instruct")
    assert locate("smollm2-135m-instruct") == path
    assert locate(" SmolLM2-135M-Instruct ") == path


def test_a_name_that_is_not_pulled_says_how() -> None:
    with pytest.raises(CheckpointError) as caught:
        locate("smollm2-135m-instruct")
    assert str(caught.value) == (
        "smollm2-135m-instruct is not on this machine yet: run `bluejay pull "
        "smollm2-135m-instruct` (92.9 MB)."
    )
    with pytest.raises(CheckpointError, match=r"bluejay pull gpt-j-6b` \(12\.1 GB\)"):
        locate("gpt-j-6b")


def test_an_unknown_name_says_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean gpt-j-6b"):
        locate("gptj-6b")


def test_hub_models_are_used_where_they_lie() -> None:
    path = install_from_hub("openai-community/gpt2")
    assert locate("gpt2") == locate("openai-community/gpt2") == path
    assert locate(f"gpt2@{COMMIT}") == path
    with pytest.raises(CheckpointError, match="gpt2@old is not on this machine"):
        locate("gpt2@old")
    other = install_from_hub("someone/a-model_of.mine", revision="v1")
    assert locate("someone/a-model_of.mine@v1") == other
    with pytest.raises(CheckpointError, match=r"bluejay pull someone/a-model_of\.mine`"):
        locate("someone/a-model_of.mine")


def test_gpt_j_means_its_half_precision_branch() -> None:
    path = install_from_hub("EleutherAI/gpt-j-6b", revision="float16")
    assert locate("gpt-j-6b") == path
    with pytest.raises(CheckpointError):
        locate("gpt-j-6b-float32")


def test_names_without_revisions_refuse_one() -> None:
    with pytest.raises(UsageError, match="no revisions"):
        locate("smollm2-135m-instruct@main")


def test_a_folder_does_not_hide_a_name_unless_written_as_a_path() -> None:
    path = install_from_hub("openai-community/gpt2")
    Path("gpt2").mkdir()
    assert locate("gpt2") == path
    assert locate("./gpt2") == Path("./gpt2")
    assert locate("gpt2/") == Path("gpt2")
    assert locate(Path("gpt2")) == Path("gpt2")


def test_a_path_hides_a_repository_of_the_same_name() -> None:
    install_from_hub("owner/name")
    Path("owner/name").mkdir(parents=True)
    assert locate("owner/name") == Path("owner/name")


def test_files_and_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("mine").mkdir()
    Path("weights.gguf").write_bytes(b"GGUF")
    assert locate("mine") == Path("mine")
    assert locate("weights.gguf") == Path("weights.gguf")
    assert locate(".") == Path(".")
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert locate("~/mine") == Path.cwd() / "mine"


@pytest.mark.parametrize(
    "text", ["missing.gguf", "./missing", "/missing/folder", "a/b/c", "../..//nothing", "x\\y"]
)
def test_a_path_to_nothing(text: str) -> None:
    with pytest.raises(UsageError):
        locate(text)


@pytest.mark.parametrize(
    "text", ["", "  ", "a\0b", "é", "x" * 5000, "a\nb", "@", "gpt2@..", "@main"]
)
def test_nonsense_is_one_sentence(text: str) -> None:
    with pytest.raises(BluejayError) as caught:
        locate(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_file_kept_as_it_is_comes_back_as_the_file() -> None:
    folder = attempt_folder("smollm2-135m-instruct") / "model"
    folder.mkdir()
    (folder / "x.gguf").write_bytes(b"GGUF")
    path = publish(folder, "smollm2-135m-instruct")
    assert locate("smollm2-135m-instruct") == path / "x.gguf"


def test_no_name_and_no_model_says_what_to_pull() -> None:
    assert present_models() == []
    with pytest.raises(CheckpointError, match="No model is on this machine yet: run `bluejay pull"):
        locate()


def test_no_name_means_the_largest_that_fits() -> None:
    small = install("smollm2-135m-instruct", num_bytes=500)
    large = install_from_hub("openai-community/gpt2-xl", num_bytes=5000)
    assert [m.entry.name for m in present_models()] == ["smollm2-135m-instruct", "gpt2-xl"]
    assert locate() == large
    assert best_present(memory_bytes=6250).path == large
    assert best_present(memory_bytes=6249).path == small
    with pytest.raises(MemoryLimitError, match="smollm2-135m-instruct"):
        best_present(memory_bytes=600)


def test_a_bundled_model_is_used_until_a_larger_one_is_here(bundled: Path) -> None:
    assert locate() == locate("jay") == bundled
    assert best_present().kept_in == "bluejay"
    assert locate("jay") == bundled
    large = install_from_hub("openai-community/gpt2-xl")
    assert locate() == large


def test_the_memory_of_this_machine_is_plausible() -> None:
    assert 2**28 < machine_memory() < 2**50


def test_locating_imports_neither_jax_nor_huggingface_hub() -> None:
    code = (
        "import sys; from bluejay.checkpoints import locate, catalogue, model_cache, pull; "
        "sys.exit(bool({'jax', 'huggingface_hub', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
