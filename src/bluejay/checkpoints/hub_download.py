"""Fetching a model from the Hugging Face hub into Hugging Face's own cache.

huggingface_hub resumes a connection that drops, but (2.x) throws away what it has of a file when
it is stopped, and GPT-J is one file of 12 or 24 GB. Files whose SHA-256 the hub tells are therefore
downloaded here first, into `blobs/SHA256.bluejay` of the same cache, where a later pull goes on (in
steps of 10 MiB); checked, and renamed to the blob they are. huggingface_hub does the rest.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, Any

from bluejay.checkpoints.hub_cache import (
    SIDE_FILES,
    HubId,
    cached_snapshot,
    has_tokenizer,
    hub_cache_root,
    present_files,
    repository_folder,
    weight_files,
)
from bluejay.checkpoints.model_cache import folder_bytes, require_space
from bluejay.checkpoints.pull_progress import OnProgress, watching
from bluejay.checkpoints.verified_file import require_sha256
from bluejay.core.errors import BluejayError, CheckpointError, DiskError, UsageError

_SHA256 = re.compile(r"[0-9a-f]{64}")
_PARTIAL_SUFFIX = ".bluejay"


@dataclass(frozen=True, kw_only=True)
class _HubFile:
    name: str
    num_bytes: int
    sha256: str | None


def download_from_hub(hub_id: HubId, *, on_progress: OnProgress) -> Path:
    """The snapshot folder of `hub_id` in Hugging Face's cache, downloaded as far as it is missing.

    A complete snapshot that is there already is returned without asking the network. The caller
    holds a lock on the repository. No file with code is fetched and none is run.
    """
    there = ready_snapshot(hub_id)
    if there is not None:
        return there
    hub = _huggingface_hub()
    with _explaining(hub_id), _without_bars(hub):
        commit, files = _wanted_files(hub, hub_id)
        folder = repository_folder(hub_id)
        missing = _missing_bytes(folder, files)
        require_space(hub_cache_root(), missing, purpose=f"Pulling {hub_id}")
        before = folder_bytes(folder)
        with watching(folder, on_progress, phase="download", total_bytes=missing, before=before):
            for file in files:
                if file.sha256 is not None:
                    _download_blob(hub, hub_id, commit, file)
        for file in files:
            _admit_blob(folder, file, on_progress=on_progress)
        hub.snapshot_download(
            hub_id.repository,
            revision=hub_id.revision,
            cache_dir=hub_cache_root(),
            allow_patterns=[file.name for file in files],
            library_name="bluejay",
        )
    there = cached_snapshot(hub_id)
    if there is None:
        raise CheckpointError(
            f"{hub_id} changed on the hub while it was downloaded: run `bluejay pull {hub_id}` "
            "again."
        )
    return there


def ready_snapshot(hub_id: HubId) -> Path | None:
    """The folder in Hugging Face's cache if nothing is missing of it, the tokenizer included."""
    there = cached_snapshot(hub_id)
    return there if there is not None and has_tokenizer(present_files(there)) else None


def _huggingface_hub() -> Any:
    try:
        # Not at the top: it is an extra, and only models from the hub need it.
        hub = import_module("huggingface_hub")
        for part in ("utils", "file_download"):
            import_module(f"huggingface_hub.{part}")
    except ImportError as error:
        raise CheckpointError(
            "Models from the hub need the package huggingface_hub: run "
            "`pip install 'bluejay[hub]'` and pull again."
        ) from error
    return hub


def _wanted_files(hub: Any, hub_id: HubId) -> tuple[str, list[_HubFile]]:
    """The commit of the wanted revision and the files to fetch of it, weights last."""
    info = hub.HfApi(library_name="bluejay").model_info(
        hub_id.repository, revision=hub_id.revision, files_metadata=True
    )
    listed = {file.rfilename: file for file in info.siblings or ()}
    weights = weight_files(listed)
    if not weights:
        raise _unusable(hub_id, list(listed))
    names = [name for name in SIDE_FILES if name in listed] + weights
    files = []
    for name in names:
        sha256 = getattr(listed[name].lfs, "sha256", None)
        known = isinstance(sha256, str) and _SHA256.fullmatch(sha256)
        files.append(
            _HubFile(
                name=name,
                num_bytes=listed[name].size or 0,
                sha256=sha256 if known else None,
            )
        )
    return info.sha, files


def _unusable(hub_id: HubId, names: list[str]) -> CheckpointError:
    if any(name.endswith(".gguf") for name in names):
        return CheckpointError(
            f"{hub_id} holds GGUF files to choose from: download one with `hf download "
            f"{hub_id.repository} FILE.gguf --local-dir .` and give its path."
        )
    return CheckpointError(
        f"{hub_id} holds no weights that can be read (config.json with complete safetensors or "
        "pytorch_model.bin files): look for the original model it was made from."
    )


def _missing_bytes(folder: Path, files: list[_HubFile]) -> int:
    missing = 0
    for file in files:
        blob = folder / "blobs" / (file.sha256 or "")
        if file.sha256 is None or not blob.exists():
            partial = blob.with_name(blob.name + _PARTIAL_SUFFIX)
            missing += file.num_bytes - (partial.stat().st_size if partial.is_file() else 0)
    return max(missing, 0)


def _download_blob(hub: Any, hub_id: HubId, commit: str, file: _HubFile) -> None:
    """Bring the partial blob of `file` to its full size, from where an earlier pull stopped."""
    blob = repository_folder(hub_id) / "blobs" / str(file.sha256)
    if blob.exists():
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(blob.name + _PARTIAL_SUFFIX)
    with open(partial, "ab") as target:
        if target.tell() > file.num_bytes:
            target.truncate(0)
        while (have := target.seek(0, os.SEEK_END)) < file.num_bytes:
            try:
                _continue_download(hub, hub_id, commit, file, target)
            except Exception as error:
                # Versions differ in what they try again; anew only as long as it gets further.
                if not _is_network_error(error) or target.seek(0, os.SEEK_END) <= have:
                    raise


def _continue_download(
    hub: Any, hub_id: HubId, commit: str, file: _HubFile, target: IO[bytes]
) -> None:
    hub.file_download.http_get(
        hub.hf_hub_url(hub_id.repository, file.name, revision=commit),
        target,
        resume_size=target.tell(),
        # Compressed on its way, a file could not be continued at a byte.
        headers=hub.utils.build_hf_headers(library_name="bluejay")
        | {"Accept-Encoding": "identity"},
        expected_size=file.num_bytes,
    )


def _admit_blob(folder: Path, file: _HubFile, *, on_progress: OnProgress) -> None:
    """Check a downloaded partial blob, and make it the blob; a damaged one is deleted."""
    if file.sha256 is None:
        return
    blob = folder / "blobs" / file.sha256
    partial = blob.with_name(blob.name + _PARTIAL_SUFFIX)
    if blob.exists():
        partial.unlink(missing_ok=True)
        return
    try:
        require_sha256(partial, file.sha256, on_progress=on_progress)
    except CheckpointError:
        partial.unlink()
        raise
    with open(partial, "rb") as written:
        os.fsync(written.fileno())
    os.replace(partial, blob)


@contextmanager
def _without_bars(hub: Any) -> Iterator[None]:
    if hub.utils.are_progress_bars_disabled():
        yield
        return
    hub.utils.disable_progress_bars()
    try:
        yield
    finally:
        hub.utils.enable_progress_bars()


@contextmanager
def _explaining(hub_id: HubId) -> Iterator[None]:
    """Turn whatever huggingface_hub raises into one sentence with a remedy."""
    try:
        yield
    except BluejayError:
        raise
    except Exception as error:
        raise explained_hub_error(error, hub_id) from error


def explained_hub_error(error: Exception, hub_id: HubId) -> BluejayError:
    """The sentence for an error that came out of huggingface_hub, or from under it."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    status = getattr(getattr(error, "response", None), "status_code", None)
    if "OfflineModeIsEnabled" in kinds:
        return CheckpointError(
            f"{hub_id} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it: unset that "
            f"and run `bluejay pull {hub_id}`."
        )
    if "GatedRepoError" in kinds:
        return CheckpointError(
            f"{hub_id} is only given to people who accepted its terms: do so at "
            f"https://huggingface.co/{hub_id.repository}, run `hf auth login`, and pull again."
        )
    if "RevisionNotFoundError" in kinds:
        return UsageError(
            f"{hub_id.repository} has no revision {hub_id.revision!r} on the hub: its branches are"
            f" listed at https://huggingface.co/{hub_id.repository}/tree/main."
        )
    if "RepositoryNotFoundError" in kinds or "HFValidationError" in kinds:
        return UsageError(
            f"There is no model {hub_id.repository} on the hub, or it is private: check the "
            "spelling, or log in with `hf auth login`."
        )
    if status is not None:
        return CheckpointError(
            f"The hub answered {status} when asked for {hub_id}: try `bluejay pull {hub_id}` again "
            "later; what was downloaded is kept."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskError(
            f"The disk of {hub_cache_root()} filled up while {hub_id} was downloaded: make room "
            "and pull again (what was downloaded is kept), or choose another disk with HF_HOME."
        )
    if isinstance(error, PermissionError):
        return DiskError(f"{hub_cache_root()} cannot be written: choose another with HF_HOME.")
    if _is_network_error(error) or "LocalEntryNotFoundError" in kinds:
        return CheckpointError(
            f"You seem to be offline, or the hub cannot be reached, and {hub_id} is not complete on"
            f" this machine: run `bluejay pull {hub_id}` with a network, it goes on where it "
            "stopped."
        )
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return CheckpointError(f"{hub_id} could not be fetched from the hub: {reason}")


def _is_network_error(error: Exception) -> bool:
    # httpx, httpx2 or requests, as the version of huggingface_hub has it.
    module = type(error).__module__.partition(".")[0]
    network = ("httpx", "httpcore", "requests", "urllib3")
    return isinstance(error, ConnectionError | TimeoutError) or module.startswith(network)
