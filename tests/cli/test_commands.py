"""The command line as a shell meets it: output, exit codes, one sentence for every error."""

import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from bluejay.cli.commands import COMMANDS, command_parser
from bluejay.cli.failures import describe
from bluejay.core.errors import (
    BluejayError,
    CheckpointError,
    DataError,
    DiskError,
    HungError,
    InterruptedRunError,
    MemoryLimitError,
    UsageError,
)
from golden_files import load_case, write_hf_folder
from text_models import write_text_model

BLUEJAY = [sys.executable, "-m", "bluejay"]


OPTIONS = {
    "generate": sorted(
        [
            "--model",
            "--mesh",
            "--dtype",
            "--cache-dtype",
            "--threads",
            "--max-tokens",
            "--stop",
            "--n",
            "--temperature",
            "--top-p",
            "--min-p",
            "--typical-p",
            "--repetition-penalty",
            "--presence-penalty",
            "--frequency-penalty",
            "--top-k",
            "--logit-bias",
            "--seed",
            "--json",
            "--no-stream",
            "--logprobs",
            "--speculate",
            "--draft",
            "--url",
            "--api-key-env",
        ]
    ),
    "suggest": ["--cache-dtype", "--dtype", "--json", "--mesh", "--model", "--threads"],
    "chat": [
        "--api-key-env",
        "--cache-dtype",
        "--dtype",
        "--max-tokens",
        "--mesh",
        "--model",
        "--seed",
        "--system",
        "--temperature",
        "--threads",
        "--top-p",
        "--url",
    ],
    "serve": [
        "--adapter",
        "--alias",
        "--allowed-host",
        "--api-key-file",
        "--body-timeout",
        "--cache-dtype",
        "--context",
        "--cors-origin",
        "--drain-timeout",
        "--dtype",
        "--grammar-timeout",
        "--hang-timeout",
        "--header-timeout",
        "--host",
        "--keep-alive-timeout",
        "--lan",
        "--log-json",
        "--max-bad-words",
        "--max-body-bytes",
        "--max-connections",
        "--max-embedding-requests",
        "--max-grammar-bytes",
        "--max-grammar-depth",
        "--max-header-bytes",
        "--max-headers",
        "--max-logit-bias",
        "--max-logprobs",
        "--max-prompt-characters",
        "--max-prompts",
        "--max-samples",
        "--max-sequences",
        "--max-stop-characters",
        "--max-stop-strings",
        "--max-suggest-requests",
        "--mesh",
        "--ping-interval",
        "--port",
        "--queue-requests",
        "--queue-timeout",
        "--queue-tokens",
        "--request-timeout",
        "--slots",
        "--threads",
        "--tls-certificate",
        "--tls-key",
        "--write-timeout",
    ],
    "models": ["--here", "--json"],
    "pull": [],
    "info": ["--all", "--json"],
    "convert": ["--dtype", "--to"],
    "quantize": ["--bits", "--calibrate", "--held-out"],
    "prepare": [
        "--data",
        "--fetch-books",
        "--field",
        "--held-out",
        "--json",
        "--order",
        "--out",
        "--tokenizer",
        "--vocab-size",
    ],
    "train": [
        "--data",
        "--dry-run",
        "--from",
        "--list",
        "--minutes",
        "--run",
        "--steps",
        "--threads",
    ],
    "resume": ["--data", "--minutes", "--steps", "--threads"],
    "bench": [
        "--batch",
        "--cache-dtype",
        "--context",
        "--dtype",
        "--json",
        "--prompt",
        "--repeat",
        "--threads",
        "--tokens",
    ],
    "runs": ["--json"],
    "plot": ["--against", "--output"],
    "doctor": ["--json"],
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_text_model(tmp_path_factory.mktemp("cli") / "model")


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLUEJAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    # The suite's strict settings are for our code; a user's shell has none of them.
    monkeypatch.delenv("BLUEJAY_DEBUG", raising=False)


def bluejay(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*BLUEJAY, *arguments],
        capture_output=True,
        text=True,
        input=stdin,
        timeout=120,
        check=False,
    )


def refused(*arguments: str, code: int) -> str:
    """The one sentence on stderr of a command that must fail with `code`."""
    done = bluejay(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("bluejay: ")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def test_bare_bluejay_greets_with_three_commands() -> None:
    done = bluejay()
    assert done.returncode == 0
    assert sum(line.startswith("  bluejay ") for line in done.stdout.splitlines()) == 3


def test_commands_and_their_options_are_these() -> None:
    """A new command or flag is a decision: it is made here, too."""
    options = {
        name: sorted(
            option
            for action in command_parser(command)._actions
            for option in action.option_strings
            if option.startswith("--") and option not in ("--help", "--debug")
        )
        for name, command in COMMANDS.items()
    }
    assert options == OPTIONS


@pytest.mark.parametrize("arguments", [[], ["--help"], ["generate", "--help"], ["--version"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    script = (
        "import sys\nfrom bluejay.cli.main import run\n"
        "try:\n    run(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'jax', 'tokenizers', 'safetensors', 'gguf', 'huggingface_hub'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"


def test_generate_prints_the_prompt_and_goes_on(model: Path) -> None:
    arguments = ["generate", "the sea", "-m", str(model), "--max-tokens", "12", "--seed", "1"]
    first, second = bluejay(*arguments), bluejay(*arguments)
    assert first.returncode == 0, first.stderr
    assert first.stdout.startswith("the sea")
    assert len(first.stdout) > len("the sea\n")
    assert first.stdout == second.stdout
    assert "12 tokens" in first.stderr
    piped = bluejay("generate", "-", *arguments[2:], stdin="the sea")
    assert piped.stdout == first.stdout


def test_generate_json_is_one_object_with_everything(model: Path) -> None:
    done = bluejay(
        "generate", "the sea", "-m", str(model), "--max-tokens", "6", "--seed", "5",
        "--n", "2", "--logprobs", "2", "--json",
    )  # fmt: skip
    document = json.loads(done.stdout)
    assert len(document["completions"]) == 2
    assert "5" in json.dumps(document["seed"])
    assert all(sample["finish_reason"] in ("stop", "length") for sample in document["completions"])


def test_suggest_prints_bars_and_json(model: Path) -> None:
    shown = bluejay("suggest", "the sea is ", "-m", str(model), "-k", "3")
    assert shown.returncode == 0, shown.stderr
    document = json.loads(bluejay("suggest", "the sea is ", "-m", str(model), "--json").stdout)
    words = [item["word"] for item in document["suggestions"]]
    assert len(set(words)) == len(words)
    for line in shown.stdout.splitlines():
        assert line.endswith("%")
        assert "\x1b" not in line  # no colour where nobody asked for it


def test_info_and_convert(model: Path, tmp_path: Path) -> None:
    info = bluejay("info", "gptj-6b")
    assert info.returncode == 0, info.stderr
    assert "6,050,882,784" in info.stdout
    assert "285" in info.stdout
    done = bluejay("convert", str(model), str(tmp_path / "hf"), "--to", "hf", "--dtype", "bfloat16")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "hf" / "model.safetensors").is_file()
    assert bluejay("info", str(tmp_path / "hf")).returncode == 0


def test_models_and_doctor() -> None:
    models = bluejay("models")
    assert models.returncode == 0, models.stderr
    for part in ("smollm2-135m-instruct", "Apache-2.0", "gpt-j-6b"):
        assert part in models.stdout
    assert json.loads(bluejay("models", "--json").stdout)
    doctor = bluejay("doctor")
    assert doctor.returncode == 0, doctor.stderr
    assert "gptj-6b" in doctor.stdout
    assert "530" in doctor.stdout
    predicted = json.loads(bluejay("doctor", "--json").stdout)["predictions"]
    assert [item["name"] for item in predicted] == ["bluejay-tiny", "gptj-6b", "gptj-6b"]
    rates = [item["tokens_per_second"] for item in predicted]
    assert rates == sorted(rates, reverse=True), "fewer bytes, more tokens"


@pytest.mark.parametrize(
    ("arguments", "code", "part"),
    [
        (["generade", "x"], 2, "generate"),
        (["generate"], 2, "PROMPT"),
        (["generate", "x", "--temperatur", "1"], 2, "--temperature"),
        (["generate", "x", "--max-tokens", "many"], 2, "many"),
        (["suggest", "x", "-m", "no-such-model"], 2, "no-such-model"),
        (["suggest", "x", "-m", "smollm2-135m-instruct"], 4, "bluejay pull smollm2-135m-instruct"),
        (["info", "/no/such/folder"], 2, "/no/such/folder"),
        (["generate", "x", "--threads", "0"], 2, "0"),
        (["suggest", "x", "-m", "bluejay-tiny", "--threads", "9999"], 2, "9999"),
        (["generate", "x", "--cache-dtype", "int4"], 2, "float32, float16 or int8"),
        (["bench", "bluejay-tiny", "--batch", "1,x"], 2, "x"),
        (["bench", "bluejay-tiny", "--batch", "0"], 2, "batch is 0"),
        (["bench", "bluejay-tiny", "--tokens", "300"], 2, "lower --tokens"),
        (["models", "rm", "../../etc"], 2, "etc"),
        (["pull", "no-such-model"], 2, "no-such-model"),
        (["--print-completion", "tcsh"], 2, "bash, zsh or fish"),
    ],
)
def test_mistakes_get_one_sentence_with_the_remedy(
    arguments: list[str], code: int, part: str
) -> None:
    assert part in refused(*arguments, code=code)


def test_values_out_of_range_are_refused(model: Path) -> None:
    sentence = refused("generate", "x", "-m", str(model), "--top-p", "1.5", code=2)
    assert "1.5" in sentence
    sentence = refused("generate", "x", "-m", str(model), "--max-tokens", "9999", code=2)
    assert "2048" in sentence


def test_a_damaged_model_is_a_checkpoint_error(tmp_path: Path) -> None:
    folder = write_hf_folder(load_case("gptj-rotary-full-head"), tmp_path / "hf")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-5])
    assert str(weights) in refused("info", str(folder), code=4)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError, 2),
        (DataError, 3),
        (CheckpointError, 4),
        (MemoryLimitError, 5),
        (DiskError, 6),
        (HungError, 70),
        (InterruptedRunError, 75),
    ],
)
def test_each_kind_of_error_has_its_exit_code(error: type[BluejayError], code: int) -> None:
    failure = describe(error("it\nbroke: mend it."))
    assert failure.exit_code == code
    assert failure.sentence == "it broke: mend it."


def test_memory_disk_and_the_unforeseen_have_theirs() -> None:
    assert describe(MemoryError()).exit_code == 5
    assert describe(OSError(28, "No space left on device", "/x")).exit_code == 6
    unexpected = describe(KeyError("k"))
    assert unexpected.exit_code == 1
    assert "--debug" in unexpected.sentence


def test_a_package_that_an_extra_brings_is_named_with_it() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    brought = project["project"]["optional-dependencies"]
    for extra, packages in brought.items():
        for requirement in packages:
            module = re.split("[>=]", requirement)[0].replace("-", "_")
            told = describe(ModuleNotFoundError(f"No module named {module!r}", name=module))
            # The hub's own refusal stands where models are fetched.
            assert (f"pip install 'bluejay[{extra}]'" in told.sentence) == (extra != "hub"), module
    code = (
        "import sys; sys.modules['msgspec'] = None; sys.argv = ['bluejay', 'serve'];"
        "from bluejay.cli.main import main; sys.exit(main())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert "bluejay[serve]" in done.stderr
    assert "defect" not in done.stderr


def test_debug_shows_the_traceback() -> None:
    """Of everything but usage, whose sentence says it all."""
    done = bluejay("suggest", "x", "-m", "smollm2-135m-instruct", "--debug")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_a_closed_pipe_is_no_error(model: Path) -> None:
    command = " ".join([*BLUEJAY, "models", "|", "head", "-1"])
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "bluejay: " not in done.stderr  # no failure is told; where the cache lies may be


def test_control_c_ends_a_generation_cleanly(model: Path) -> None:
    arguments = ["generate", "the", "-m", str(model), "--max-tokens", "2000", "--seed", "1"]
    with subprocess.Popen(
        [*BLUEJAY, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    ) as child:
        assert child.stdout is not None
        seen = b""
        while len(seen) < 20:
            piece = os.read(child.stdout.fileno(), 100)
            assert piece, seen
            seen += piece
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=60)
    assert child.returncode == 130, errors
    assert seen.startswith(b"the")
    assert b"Traceback" not in errors


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str) -> None:
    script = bluejay("--print-completion", shell)
    assert script.returncode == 0
    assert "bluejay" in script.stdout
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script.stdout, text=True, check=True)
        words = subprocess.run(
            [*BLUEJAY, "--complete", "sug"], capture_output=True, text=True, check=True
        )
        assert words.stdout.split("\t")[0] == "suggest"
