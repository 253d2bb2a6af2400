"""Bluejay and its peers on the same work: decoding, prompts, start and memory.

    python benchmarks/decode_peers.py MODELS --peers FOLDER [--rounds 5] [--sides int4,Q4_0]
                                      [--json results.json] [--label "305 M"]

FOLDER is what peers/build.sh made, MODELS what peers/make_models.py and its two converters made (a
folder, benchmarks/README.md says how), or one GGUF file that both Bluejay and llama.cpp read. Every
side is a process of its own (peers/side.py is what they are asked and answer), they take turns, the
first of a round changes, and each round begins with yardsticks of the machine. The report is a
Markdown table of medians and one of ratios; `--json` keeps every reading, for plot_peers.py.

Per round and side: a start with the model's files dropped from the page cache (cold; the engine's
own libraries stay cached), one without (warm), then the rates. Memory is that of the warm start:
the largest resident size, mapped files included, and the largest anonymous part. A side whose
engine or model is missing is named in one sentence and left out.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

from peers.comparison import report

from bluejay.runs.doctor import look_at_machine

HERE = Path(__file__).parent
_SAMPLE_SECONDS = 0.02


@dataclass(frozen=True, kw_only=True)
class Side:
    """`bits` groups sides that do the same work; `model` lies in MODELS."""

    name: str
    script: str
    model: str
    bits: int
    variant: str = ""
    ours: bool = False


def _bluejay(name: str, model: str, bits: int) -> Side:
    label = f"Bluejay {name}".strip()
    return Side(name=label, script="side_bluejay.py", model=model, bits=bits, ours=True)


def _peer(name: str, script: str, model: str, bits: int, variant: str = "") -> Side:
    return Side(name=name, script=f"side_{script}.py", model=model, bits=bits, variant=variant)


SIDES = (
    _bluejay("int4", "bluejay-int4", 4),
    _peer("llama.cpp Q4_0", "llama_cpp", "Q4_0.gguf", 4),
    _peer("OpenVINO int4", "openvino", "openvino-int4", 4),
    _bluejay("int8", "bluejay-int8", 8),
    _peer("llama.cpp Q8_0", "llama_cpp", "Q8_0.gguf", 8),
    _peer("CTranslate2 int8", "ctranslate2", "ctranslate2-int8", 8),
    _peer("OpenVINO int8", "openvino", "openvino-int8", 8),
    _bluejay("bfloat16", "bluejay-bfloat16", 16),
    _peer("llama.cpp F16", "llama_cpp", "F16.gguf", 16),
    _peer("transformers bfloat16", "transformers", "hf", 16, "bfloat16"),
    _bluejay("float32", "hf", 32),
    _peer("CTranslate2 float32", "ctranslate2", "ctranslate2-float32", 32),
    _peer("OpenVINO float32", "openvino", "openvino-float32", 32),
    _peer("transformers float32", "transformers", "hf", 32),
)
ONE_FILE = (_bluejay("", "", 0), _peer("llama.cpp", "llama_cpp", "", 0))


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What one process said, and its largest sizes in MB."""

    lines: list[dict[str, object]]
    resident_mb: float
    anonymous_mb: float


class Runner:
    """Runs sides, and remembers which cannot run."""

    def __init__(self, models: Path, peers: Path, options: list[str]) -> None:
        self._models, self._peers, self._options = models, peers, options
        self.left_out: set[str] = set()

    def model(self, side: Side) -> Path:
        return self._models / side.model if side.model else self._models

    def python(self, side: Side) -> Path:
        return Path(sys.executable) if side.ours else self._peers / "venv" / "bin" / "python"

    def missing(self, side: Side) -> str | None:
        for path in (self.python(side), self.model(side)):
            if not path.exists():
                return f"{path} is not there"
        return None

    def ask(self, side: Side, what: str) -> Answer | None:
        """None if the side cannot run; it is not asked again then."""
        if side.name in self.left_out:
            return None
        command = [str(self.python(side)), str(HERE / "peers" / side.script)]
        command += [str(self.model(side)), "--what", what, *self._options]
        command += ["--variant", side.variant, "--began", str(time.time())]
        answer, failure = run(command)
        why = failure or next((x["why"] for x in answer.lines if x["what"] == "skip"), None)
        if why is not None:
            self.leave_out(side, f"{why}")
            return None
        return answer

    def leave_out(self, side: Side, why: str) -> None:
        self.left_out.add(side.name)
        print(f"{side.name} is left out: {why}.", file=sys.stderr, flush=True)

    def round(self, sides: list[Side], number: int) -> list[dict[str, object]]:
        """Readings of one round, each with the names of its side and round."""
        found: list[dict[str, object]] = [{"what": "yardsticks", "round": number, **yardsticks()}]
        for side in sides:
            about = {"side": side.name, "bits": side.bits, "ours": side.ours, "round": number}
            drop_from_cache(self.model(side))
            for state in ("cold", "warm"):
                answer = self.ask(side, "start")
                if answer is not None:
                    found += [{**about, **line, "state": state} for line in answer.lines]
                    if state == "warm":
                        memory = {"resident_mb": answer.resident_mb}
                        memory |= {"anonymous_mb": answer.anonymous_mb}
                        found.append({**about, "what": "memory", **memory})
            answer = self.ask(side, "rates")
            if answer is not None:
                found += [{**about, **line} for line in answer.lines]
            print(f"round {number + 1}: {side.name}", file=sys.stderr, flush=True)
        return found


def run(command: list[str]) -> tuple[Answer, str | None]:
    """The answer, and what went wrong in a sentence or None."""
    # A start is that of an installed engine, whose Python code was compiled when it ran first.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=HERE,
        env=environment,
    )
    peaks = {"VmHWM": 0, "RssAnon": 0}
    pipes: tuple[str, str] | None = None
    while pipes is None:
        try:
            pipes = process.communicate(timeout=_SAMPLE_SECONDS)
        except subprocess.TimeoutExpired:
            for name, value in memory_of(process.pid).items():
                peaks[name] = max(peaks[name], value)
    lines = [json.loads(line) for line in pipes[0].splitlines() if line.startswith("{")]
    last = pipes[1].strip().splitlines()[-1:] or [f"it ended with {process.returncode}"]
    failure = last[0][:300] if process.returncode else None
    resident, anonymous = (peaks[name] / 1024 for name in ("VmHWM", "RssAnon"))
    return Answer(lines=lines, resident_mb=resident, anonymous_mb=anonymous), failure


def memory_of(pid: int) -> dict[str, int]:
    """VmHWM and RssAnon in kB, where the system tells; empty once the process ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in status.splitlines())
    wanted = ("VmHWM", "RssAnon")
    return {name: int(fields[name].split()[0]) for name in wanted if name in fields}


def drop_from_cache(model: Path) -> None:
    """Let the next reader take the files from the disk."""
    for path in [model] if model.is_file() else model.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def yardsticks() -> dict[str, object]:
    command = [sys.executable, str(HERE / "yardsticks.py"), "--json"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, object] = json.loads(done.stdout)
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", type=Path)
    parser.add_argument("--peers", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sides", default="", help="parts of names, such as int4,Q4_0")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--label")
    parser.add_argument("--batch", default="1,4,8,16")
    parser.add_argument("--prompt", default="128,512,2048")
    parser.add_argument("--context", default="0,1900")
    parser.add_argument("--tokens", default="64")
    parser.add_argument("--threads", default="2")
    return parser.parse_args()


def main() -> None:
    given = arguments()
    # Not resolved: the interpreter of an environment is a link, and only its own path finds it.
    models, peers = given.models.absolute(), given.peers.absolute()
    names = ("batch", "prompt", "context", "tokens", "threads")
    options = [part for name in names for part in (f"--{name}", getattr(given, name))]
    runner = Runner(models, peers, options)
    wanted = [part for part in given.sides.split(",") if part]
    sides = []
    for side in ONE_FILE if models.is_file() else SIDES:
        if wanted and not any(part in side.name for part in wanted):
            continue
        missing = runner.missing(side)
        if missing:
            runner.leave_out(side, missing)
        else:
            sides.append(side)
    machine = look_at_machine()
    record: dict[str, object] = {
        "date": str(date.today()),
        "label": given.label or models.stem,
        "machine": {"processor": machine.processor, "cores": machine.num_usable_cores}
        | {"instruction_sets": machine.instruction_sets},
        "settings": dict(zip(options[::2], options[1::2], strict=True)),
        "sides": [asdict(side) for side in sides],
    }
    readings: list[dict[str, object]] = []
    for number in range(given.rounds):
        turn = number % max(1, len(sides))
        readings += runner.round(sides[turn:] + sides[:turn], number)
        if given.json:  # after every round, so that a long measurement that is cut short is kept
            given.json.write_text(json.dumps(record | {"readings": readings}, indent=1) + "\n")
    print(report(record | {"readings": readings}))


if __name__ == "__main__":
    main()
