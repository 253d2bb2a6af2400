"""The repository's own checks refuse what they are there to refuse."""

import subprocess
import sys
from pathlib import Path

import check_lengths
import check_locks
import check_skips
import pytest
import run_docs

HASH = "--hash=sha256:" + "0" * 64


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The checks look at the folder they are started in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def skip_report(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What pytest itself reports about a skipped test."""
    folder = tmp_path_factory.mktemp("skips")
    (folder / "tests").mkdir()
    (folder / "tests" / "test_gpu.py").write_text(
        "import pytest\n\n\ndef test_runs():\n    pass\n\n\n"
        "@pytest.mark.skip(reason='no GPU')\ndef test_device():\n    pass\n"
    )
    options = ["-q", "-p", "no:cacheprovider", "--rootdir=.", "--junit-xml=report.xml"]
    command = [sys.executable, "-m", "pytest", *options, "tests"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return (folder / "report.xml").read_text()


@pytest.mark.parametrize(
    ("requirement", "problem"),
    [
        (f"numpy==2.4.6 \\\n    {HASH}", None),
        (f"numpy==2.4.6 ; python_full_version < '3.12' \\\n    {HASH} \\\n    {HASH}", None),
        ("numpy==2.4.6", "without sha256 hashes"),
        (f"numpy>=2 \\\n    {HASH}", "not a pinned requirement"),
        (f"numpy @ https://example.org/numpy.whl \\\n    {HASH}", "an address"),
        (f"--index-url https://example.org/simple\nnumpy==2.4.6 \\\n    {HASH}", "an address"),
        (f"numpy==2.4.6 \\\n    {HASH}\n    # via -r /home/me/in.txt", "a path"),
        (f"scipy==1.17.1 \\\n    {HASH}", "numpy is missing"),
    ],
)
def test_locks(
    folder: Path, requirement: str, problem: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "pyproject.toml").write_text(
        '[project]\ndependencies = ["numpy>=2"]\n[project.optional-dependencies]\n'
        '[dependency-groups]\ngolden = ["NumPy"]\n'
    )
    for lock in check_locks.LOCKS:
        (folder / lock).write_text(requirement + "\n")
    assert check_locks.main() == (problem is not None)
    assert (problem or "1 packages") in capsys.readouterr().out


@pytest.mark.parametrize(
    ("num_lines", "place", "ok"), [(60, "src", True), (61, "src", False), (61, "tests", False)]
)
def test_function_lengths(folder: Path, num_lines: int, place: str, ok: bool) -> None:
    (folder / place).mkdir()
    body = "    x = 1\n" * (num_lines - 1)
    (folder / place / "long.py").write_text(f"def f():\n{body}\n\ndef g():\n    pass\n")
    assert (check_lengths.main() == 0) == ok


@pytest.mark.parametrize(("num_lines", "ok"), [(400, True), (401, False)])
def test_file_length(folder: Path, num_lines: int, ok: bool) -> None:
    (folder / "src").mkdir()
    (folder / "src" / "a.py").write_text("def f(): pass\n" + "x = 1\n" * (num_lines - 1))
    assert (check_lengths.main() == 0) == ok


@pytest.mark.parametrize(
    ("allowed", "ok"),
    [
        ("", False),
        ("tests.test_gpu::*  # needs a GPU, which this machine has not", True),
        ("tests.test_other::*  # another test", False),
    ],
)
def test_skips_are_listed(folder: Path, skip_report: str, allowed: str, ok: bool) -> None:
    (folder / "tests").mkdir()
    (folder / "tests" / "allowed_skips.txt").write_text(f"# comment\n{allowed}\n")
    (folder / ".cache" / "reports").mkdir(parents=True)
    (folder / ".cache" / "reports" / "suite.xml").write_text(skip_report)
    assert (check_skips.main() == 0) == ok


def test_listed_skips_have_a_reason(folder: Path) -> None:
    (folder / "tests").mkdir()
    (folder / "tests" / "allowed_skips.txt").write_text("tests.test_gpu::*\n")
    with pytest.raises(SystemExit, match=r"test_gpu.* without a reason"):
        check_skips.allowed_patterns()


def test_blocks_run_in_order_and_failures_count(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "guide.md").write_text(
        "```bash\necho one > file\n```\ntext\n```python\nprint(open('file').read())\n```\n"
        "<!-- not run: it needs a GPU -->\n```bash\nfalse\n```\n```sh\nfalse\n```\n"
    )
    assert run_docs.main(["guide.md"]) == 0
    printed = capfd.readouterr().out
    assert "guide.md:10 not run: it needs a GPU" in printed
    assert "one\n" in printed
    (folder / "bad.md").write_text("```bash\nfalse | true\ntrue\n```\n")
    assert run_docs.main(["guide.md", "bad.md"]) == 1
