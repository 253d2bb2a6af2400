"""The server beside the bare decode loop, or beside another server, by turns.

    python benchmarks/serve_pairs.py loop smollm2-135m-instruct --slots 32 --rounds 5
    python benchmarks/serve_pairs.py peer FILE.gguf --slots 8 --rounds 5 \
        --peer 'llama-server -m FILE.gguf -np 8 -c 16384 -t 2 --port 9102'

`loop` starts `bluejay serve MODEL` and loads the same model here. In each round the loop (8 steps a
call, prompts left out), then so many clients of the server that get their answers whole, then as
many that stream, write texts of `--tokens` tokens from prompts of 16. `peer` starts both servers;
in each round both get the same requests, of real lengths (serve_requests.py), streamed. Whoever is
not being measured idles. Given are medians of rounds; ratios are those of each round, their median.
The command of a peer must contain `--port`.
"""

import argparse
import asyncio
import json
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

from engine import PROMPT, bare_rate
from serve_http import Client, Target
from serve_load import Extent, fixed_clients
from serve_report import figures
from serve_requests import Mix

_START_SECONDS = 600.0
_EXTRA = {"ignore_eos": True}
_RATE = "output_tokens_per_second"
Figures = dict[str, Any]
# Of so many clients or texts, in a round: servers remember requests of earlier ones.
Measure = Callable[[int, int], Awaitable[Figures]]


@contextmanager
def running(command: Sequence[str], port: int, probe: str) -> Iterator[str]:
    """The address of a server while it runs; SystemExit with its log if it does not come."""
    url = f"http://127.0.0.1:{port}"
    with tempfile.NamedTemporaryFile("w+", suffix=".log", delete=False) as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            if not asyncio.run(_is_up(url, probe, process)):
                said = Path(log.name).read_text()[-2000:]
                raise SystemExit(f"{shlex.join(command)} did not get ready:\n{said}")
            yield url
        finally:
            process.terminate()
            process.wait(60)


async def _is_up(url: str, probe: str, process: "subprocess.Popen[bytes]") -> bool:
    client, deadline = Client(Target.parse(url)), time.perf_counter() + _START_SECONDS
    while process.poll() is None and time.perf_counter() < deadline:
        if (await client.get(probe)).status == 200:
            client.close()
            return True
        await asyncio.sleep(0.2)
    return False


def by_clients(url: str, mix: Mix, seconds: float) -> Measure:
    """Figures of so many clients of a server, all after one answer each that does not count."""

    async def measure(num_clients: int, turn: int) -> Figures:
        calls = replace(mix, seed=1000 * turn + 10 * num_clients + mix.seed).calls()
        client = Client(Target.parse(url))
        try:
            extent = Extent(seconds=seconds, warm_up=num_clients)
            load = await fixed_clients(client, calls, extent, num_clients=num_clients)
        finally:
            client.close()
        found = figures(load)
        if found["errors"] or not found["ok"]:
            raise SystemExit(f"{url} with {num_clients} clients: {found['errors'] or 'no answer'}.")
        return found

    return measure


def by_loop(name: str, *, slots: int, tokens: int) -> Measure:
    """Rates of the loop in this process."""
    from bluejay import load

    model = load(name)
    runner = model.runner.with_rows(slots)

    async def measure(num_texts: int, _turn: int) -> Figures:
        rate = bare_rate(runner, model.allowed, num_texts, tokens)
        return {_RATE: rate}

    return measure


def compared(sides: Mapping[str, Measure], clients: Sequence[int], rounds: int) -> list[Figures]:
    """A row for each number of clients: medians of every side, and ratios to the first one."""
    rows = []
    for number in clients:
        found: dict[str, list[Figures]] = {name: [] for name in sides}
        for turn in range(rounds):
            for name, measure in sides.items():
                found[name].append(asyncio.run(measure(number, turn)))
                rate = found[name][-1][_RATE]
                said = f"{number} clients, round {turn + 1}, {name}: {rate:.0f} tokens/s"
                print(said, file=sys.stderr, flush=True)
        rows.append({"clients": number, "sides": {n: _summed(f) for n, f in found.items()}})
        [first, *others] = found
        for name in others:
            pairs = zip(found[name], found[first], strict=True)
            ratios = [a[_RATE] / b[_RATE] for a, b in pairs]
            rows[-1]["sides"][name]["ratio"] = round(median(ratios), 3)
            rows[-1]["sides"][name]["ratios"] = [round(ratio, 3) for ratio in ratios]
    return rows


def _summed(found: Sequence[Figures]) -> Figures:
    summed: Figures = {"tokens_per_second": round(median(f[_RATE] for f in found), 1)}
    for key in ("first_token_ms", "between_tokens_ms"):
        if found[0].get(key, {}).get("p50") is not None:
            summed[key] = {p: round(median(f[key][p] for f in found), 1) for p in ("p50", "p95")}
    if found[0].get("tokens_per_chunk") is not None:
        summed["tokens_per_chunk"] = median(f["tokens_per_chunk"] for f in found)
    return summed


def table(rows: Sequence[Figures]) -> str:
    """Markdown, a line for each number of clients and side."""
    columns = ("clients", "side", "tokens/s", "ratio", "first token ms p50 / p95")
    columns = (*columns, "between chunks ms p50 / p95", "tokens a chunk")
    lines = [f"| {' | '.join(columns)} |", "|---:|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        for name, side in row["sides"].items():
            first, between = (_two(side.get(k)) for k in ("first_token_ms", "between_tokens_ms"))
            lines.append(
                f"| {row['clients']} | {name} | {side['tokens_per_second']:.0f} |"
                f" {side.get('ratio', '')} | {first} | {between} |"
                f" {side.get('tokens_per_chunk', '')} |"
            )
    return "\n".join(lines)


def _two(values: Mapping[str, float] | None) -> str:
    return "" if values is None else f"{values['p50']:g} / {values['p95']:g}"


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("loop", "peer"))
    parser.add_argument("model")
    parser.add_argument("--peer", type=shlex.split)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--clients", default="1,8,32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--tokens", type=int, default=512, help="of each text of `loop`")
    parser.add_argument("--port", type=int, default=9101)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(argv)
    if given.what == "peer" and "--port" not in (given.peer or ()):
        parser.error("peer needs --peer COMMAND, with the --port that it listens on.")
    return given


def beside_loop(given: argparse.Namespace, url: str) -> dict[str, Measure]:
    fixed = Mix(prompt_tokens=PROMPT, max_tokens=given.tokens, extra=_EXTRA, streams=False)
    streamed = Mix(prompt_tokens=PROMPT, max_tokens=given.tokens, extra=_EXTRA, seed=1)
    return {
        "bare loop": by_loop(given.model, slots=given.slots, tokens=given.tokens),
        "server, whole": by_clients(url, fixed, given.seconds),
        "server, streamed": by_clients(url, streamed, given.seconds),
    }


def main(argv: Sequence[str] | None = None) -> int:
    from bluejay.runs.doctor import look_at_machine

    given = arguments(argv)
    clients = [int(part) for part in given.clients.split(",")]
    ours = [sys.executable, "-c", "from bluejay.cli.main import main; main()", "serve", given.model]
    ours += ["--slots", str(given.slots), "--port", str(given.port)]
    with running(ours, given.port, "/ready") as url:
        if given.what == "loop":
            rows = compared(beside_loop(given, url), clients, given.rounds)
        else:
            port = int(given.peer[given.peer.index("--port") + 1])
            with running(given.peer, port, "/v1/models") as other:
                mix = Mix(extra=_EXTRA)
                sides = {
                    "peer": by_clients(other, mix, given.seconds),
                    "bluejay": by_clients(url, mix, given.seconds),
                }
                rows = compared(sides, clients, given.rounds)
    machine = look_at_machine()
    record = {"date": str(date.today()), "processor": machine.processor, "rows": rows}
    record |= {name: getattr(given, name) for name in ("what", "slots", "rounds", "seconds")}
    record["model"] = Path(given.model).name
    if given.json:
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
