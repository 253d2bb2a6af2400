"""Load on a server of completions, any that speaks OpenAI's API: rates, times, errors.

    python benchmarks/serve.py http://127.0.0.1:8000 --clients 1,8,32 --seconds 60
    python benchmarks/serve.py http://127.0.0.1:8000 --rate 4 --requests 500
    python benchmarks/serve.py http://127.0.0.1:8000 --modes L1,L2,L3 --pid PID --json found.json

The first form keeps so many requests on their way, the second lets them arrive at random times, so
many a second. Lengths and texts are those of serve_requests.py; `--prompt-tokens` and
`--max-tokens` fix them, `--extra '{"ignore_eos": true}'` adds fields to every body. Times are those
of the client: to the first text, and between chunks of text; `tokens/chunk` in the JSON tells
whether a chunk is a token. Tokens are counted by the server's `usage`, or else by chunks.

`--modes` runs those of the table of loads that the server promises to hold, or all; each ends in
pass or fail. Some want more: `--pid` (memory and files, through /proc), `--log` (the server's
stderr), `--bare-rate` (tokens a second of the engine without a server), `--start` (L10: the command
that starts the server at the URL, which must not run yet), `--tenant-keys-env` (L8: a variable with
keys, separated by commas), L3 more connections than it has clients. What they want and do not get
is said to be not judged. `--set drops=100` changes the scale. The generator's own CPU time is
reported: it shares the machine with the server.
"""

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

from serve_bench import Bench, Scale
from serve_faults import cancel, retry_storm, slowloris, soak
from serve_http import Client, Target
from serve_load import Extent, Load, fixed_clients, poisson
from serve_modes import determinism, isolation, overload, saturate, steady
from serve_report import Verdict, figures, load_table, verdict_table
from serve_requests import Mix
from serve_users import keyboard, start

_LONGEST = 1024
_SHARE_OF_CONTEXT = 0.6
MODES: dict[str, Callable[[Bench], Awaitable[Verdict]]] = {
    "L1": steady,
    "L2": saturate,
    "L3": overload,
    "L4": retry_storm,
    "L5": cancel,
    "L6": soak,
    "L7": determinism,
    "L8": isolation,
    "L9": slowloris,
    "L10": start,
    "L11": keyboard,
}


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("url")
    parser.add_argument("--model", help="default: the first that /v1/models names")
    parser.add_argument("--key-env", default="BLUEJAY_API_KEY", help="variable with the API key")
    parser.add_argument("--tenant-keys-env", help="variable with several keys, for L8")
    parser.add_argument("--modes", default="", help="such as L1,L2, or all")
    parser.add_argument("--set", default="", help="the scale of modes: seconds=10,drops=100")
    parser.add_argument("--clients", default="8", help="requests on their way at once: 1,8,32")
    parser.add_argument("--rate", type=float, help="requests a second, in place of --clients")
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--requests", type=int)
    parser.add_argument("--warm-up", type=int, default=8)
    parser.add_argument("--no-stream", action="store_true")
    parser.add_argument("--chat", action="store_true")
    parser.add_argument("--prompt-tokens", type=int)
    parser.add_argument("--max-tokens", type=int)
    parser.add_argument("--longest", type=int, help="tokens of prompt and output together")
    parser.add_argument("--shared-tokens", type=int, default=0)
    parser.add_argument("--temperature", type=float, default=0.8)
    parser.add_argument("--extra", type=json.loads, default={})
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pid", type=int)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--bare-rate", type=float)
    parser.add_argument("--start")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--label", default="")
    return parser.parse_args(argv)


def mix_of(given: argparse.Namespace, model: str, longest: int) -> Mix:
    return Mix(
        model=model,
        seed=given.seed,
        streams=not given.no_stream,
        is_chat=given.chat,
        temperature=given.temperature,
        prompt_tokens=given.prompt_tokens,
        max_tokens=given.max_tokens,
        longest=longest,
        shared_tokens=given.shared_tokens,
        extra=given.extra,
    )


def scale_of(given: argparse.Namespace, longest: int) -> Scale:
    """The scale of the table, with what `--set` changes."""
    types: dict[str, Any] = {item.name: type(item.default) for item in fields(Scale)}
    changes: dict[str, Any] = {"longest": longest}
    for part in filter(None, given.set.split(",")):
        name, _, value = part.partition("=")
        if name not in types:
            raise SystemExit(f"--set knows {', '.join(types)}, not {name!r}.")
        changes[name] = types[name](float(value))
    return replace(Scale(), **changes)


async def first_model(client: Client) -> tuple[str, int]:
    """The first model that the server names, "" for none, and what is asked of it at most.

    Where the context is told (vLLM and Bluejay do), a part of it: tokenizers differ.
    """
    reply = await client.get("/v1/models")
    document = reply.document()
    if reply.failure or reply.status != 200 or not document.get("data"):
        return "", _LONGEST
    model = document["data"][0]
    context = model.get("max_model_len") or 2 * _LONGEST
    return str(model["id"]), min(_LONGEST, int(_SHARE_OF_CONTEXT * context))


async def run_loads(client: Client, mix: Mix, given: argparse.Namespace) -> dict[str, Load]:
    """The loads that were asked for, by name."""
    seconds = given.seconds if given.requests else given.seconds or 30.0
    extent = Extent(seconds=seconds, requests=given.requests, warm_up=given.warm_up)
    if given.rate:
        name = f"{given.rate:g} requests/s"
        return {name: await poisson(client, mix.calls(), extent, rate=given.rate, seed=given.seed)}
    found = {}
    for number in map(int, given.clients.split(",")):
        name = f"{number} client{'s' * (number != 1)}"
        found[name] = await fixed_clients(client, mix.calls(), extent, num_clients=number)
    return found


async def run_modes(bench: Bench, names: list[str]) -> list[Verdict]:
    """The modes, one after the other, each on an idle server."""
    verdicts = []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        verdicts.append(await MODES[name](bench))
        bench.client.close()
        await bench.seconds_until_idle(limit=30.0)
    return verdicts


async def measure(given: argparse.Namespace) -> tuple[dict[str, Any], str, bool]:
    """The record, its table, and whether all went well."""
    target = Target.parse(given.url, key=os.environ.get(given.key_env, ""))
    client = Client(target)
    try:
        return await _measure(client, given)
    finally:
        client.close()
        await asyncio.sleep(0)


async def _measure(client: Client, given: argparse.Namespace) -> tuple[dict[str, Any], str, bool]:
    from bluejay.runs.doctor import look_at_machine

    target = client.target
    model, longest = await first_model(client)
    longest = given.longest or longest
    mix = mix_of(given, model if given.model is None else given.model, longest)
    machine = look_at_machine()
    record: dict[str, Any] = {
        "date": str(date.today()),
        "label": given.label,
        "machine": {"processor": machine.processor, "cores": machine.num_usable_cores},
        "server": f"{target.host}:{target.port}",
        "mix": asdict(mix),
    }
    if given.modes:
        names = list(MODES) if given.modes == "all" else given.modes.split(",")
        bench = Bench(
            client=client, mix=mix, scale=scale_of(given, longest), pid=given.pid, log=given.log
        )
        bench.bare_rate, bench.start = given.bare_rate, given.start
        keys = os.environ.get(given.tenant_keys_env or "", "")
        bench.tenant_keys = [key for key in keys.split(",") if key]
        verdicts = await run_modes(bench, names)
        record |= {"scale": asdict(bench.scale), "modes": [v.as_json() for v in verdicts]}
        return record, verdict_table(verdicts), all(verdict.passed for verdict in verdicts)
    loads = await run_loads(client, mix, given)
    record["loads"] = {name: figures(load) for name, load in loads.items()}
    is_well = all(outcome.is_ok for load in loads.values() for outcome in load.outcomes)
    return record, load_table(record["loads"]), is_well


def main(argv: list[str] | None = None) -> int:
    given = arguments(argv)
    wrong = sorted(set(filter(None, given.modes.split(","))) - {*MODES, "all"})
    if wrong:
        raise SystemExit(f"There is no mode {wrong[0]}: there are {', '.join(MODES)}.")
    record, table, is_well = asyncio.run(measure(given))
    if given.json:
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    machine = record["machine"]
    print(f"{machine['processor']}, {machine['cores']} cores, {record['date']} {given.label}\n")
    print(table)
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())
