"""When a process starts itself anew with large pages, and when it does not."""

import os
import platform
import subprocess
import sys

import pytest

from bluejay.cli import huge_pages


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    calls: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda _file, arguments: calls.append(arguments))
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return calls


@pytest.mark.parametrize("argv", [["train", "bluejay-nano"], ["--debug", "resume", "run"]])
def test_training_starts_anew(started: list[list[str]], argv: list[str]) -> None:
    huge_pages.restart_with_huge_pages(argv)
    assert started == [sys.orig_argv]
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"


@pytest.mark.parametrize("argv", [[], ["generate", "train"], ["--help"], ["plot", "run"]])
def test_nothing_else_does(started: list[list[str]], argv: list[str]) -> None:
    huge_pages.restart_with_huge_pages(argv)
    assert not started


def test_a_wish_of_the_user_stays(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=0")
    huge_pages.restart_with_huge_pages(["train"])
    assert not started
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=0")
    huge_pages.restart_with_huge_pages(["train"])
    assert os.environ["GLIBC_TUNABLES"] == "glibc.malloc.check=0:glibc.malloc.hugetlb=1"


def test_the_real_command_ends_as_before() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bluejay", "train", "no-such-recipe"],
        env={k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "no-such-recipe" in done.stderr
