"""The load generator against a server whose timing, text and faults are known."""

import asyncio
import json
import socket
import sys
from collections.abc import Callable, Coroutine
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import pytest
import serve
import serve_faults
import serve_users
from serve_bench import Bench, Scale, slope_per_thousand
from serve_http import Call, Client, Connection, Reply, Target
from serve_load import Extent, Load, fixed_clients, poisson
from serve_replies import read_reply
from serve_report import Check, Verdict, figures, percentile, verdict_table
from serve_requests import BAD_BODIES, LENGTHS, Mix

from fake_completions import FakeServer, fake_server
from fake_writing import text_of

Result = TypeVar("Result")
PREFILL, TOKEN, NUM_TOKENS = 0.05, 0.02, 6
ONE_REQUEST = PREFILL + (NUM_TOKENS - 1) * TOKEN
# Small enough for a test, large enough that each mode meets what it is for.
SCALE = Scale(
    seconds=0.4,
    slots=4,
    saturating=8,
    flood=24,
    storm=12,
    drops=40,
    alone_drops=3,
    soak=120,
    prompts=12,
    attackers=12,
    typists=3,
    keys=10,
    keys_per_second=20.0,
    longest=600,
)


def target(server: FakeServer, key: str = "") -> Target:
    return Target.parse(f"http://127.0.0.1:{server.port}/v1", key=key)


def with_client(
    server: FakeServer, work: Callable[[Client], Coroutine[Any, Any, Result]], key: str = ""
) -> Result:
    """What `work` returns, in an event loop of its own, all connections closed after it."""

    async def run() -> Result:
        client = Client(target(server, key))
        try:
            return await work(client)
        finally:
            client.close()
            await asyncio.sleep(0.01)

    return asyncio.run(run())


def load(server: FakeServer, mix: Mix, extent: Extent, num_clients: int) -> Load:
    return with_client(
        server, lambda client: fixed_clients(client, mix.calls(), extent, num_clients=num_clients)
    )


def test_figures_are_those_of_the_servers_clock() -> None:
    with fake_server(slots=4, prefill_seconds=PREFILL, token_seconds=TOKEN) as server:
        done = load(server, Mix(max_tokens=NUM_TOKENS), Extent(requests=20), num_clients=4)
        found = figures(done)
        assert server.counters.new_tokens == 20 * NUM_TOKENS
    assert (found["requests"], found["ok"], found["errors"]) == (20, 20, {})
    assert found["output_tokens"] == 20 * NUM_TOKENS
    assert found["tokens_per_chunk"] == 1.0
    assert found["prompt_tokens"] == sum(len(r["prompt"].split()) for r in server.requests)
    # No client can be faster than the server; a busy machine may make it slower.
    assert 1000 * PREFILL <= found["first_token_ms"]["p50"] < 4000 * PREFILL
    assert 700 * TOKEN <= found["between_tokens_ms"]["p50"] < 4000 * TOKEN
    most = 4 * NUM_TOKENS / ONE_REQUEST + 1
    assert most / 4 < found["output_tokens_per_second"] <= most
    assert 5 * ONE_REQUEST <= found["seconds"] < 20 * ONE_REQUEST
    assert found["generator"]["cpu_seconds"] > 0


def test_waiting_for_a_slot_is_part_of_the_first_token_time() -> None:
    with fake_server(slots=1, prefill_seconds=PREFILL) as server:
        done = load(server, Mix(max_tokens=1), Extent(requests=3), num_clients=3)
    times = sorted(outcome.first_token_seconds or 0.0 for outcome in done.outcomes)
    assert all(seconds >= PREFILL * (n + 1) for n, seconds in enumerate(times))


def test_a_duration_counts_only_what_came_within_it() -> None:
    with fake_server(slots=2, token_seconds=0.01) as server:
        for streams in (True, False):
            mix = Mix(max_tokens=60, streams=streams)
            done = load(server, mix, Extent(seconds=0.3), num_clients=2)
            assert done.seconds == pytest.approx(0.3)
            found = figures(done)
            assert found["requests_per_second"] == 0.0  # both ended after it
            assert found["ok"] == 2
            # The first token of each comes at once, one more every 10 ms.
            assert 20 < found["output_tokens_per_second"] <= 2 * 31 / 0.3 + 1


def test_arrivals_do_not_wait_for_a_slow_server() -> None:
    with fake_server(slots=1, prefill_seconds=0.1) as server:
        calls = Mix(max_tokens=1).calls()
        done = with_client(
            server, lambda client: poisson(client, calls, Extent(requests=12), rate=60.0, seed=3)
        )
    sent = sorted(outcome.sent - done.began for outcome in done.outcomes)
    assert len(sent) == 12
    assert done.seconds >= 12 * 0.1
    assert sent[-1] < 12 * 0.1 / 2
    gaps = [b - a for a, b in pairwise(sent)]
    assert max(gaps) > 2 * min(gaps)


def test_the_same_seed_sends_the_same_requests_with_the_lengths_of_the_tasks() -> None:
    first, again, other = (
        [next(calls).document for _ in range(200)]
        for calls in (Mix(seed=1).calls(), Mix(seed=1).calls(), Mix(seed=2).calls())
    )
    assert first == again
    assert first != other
    pairs = {pair for task in LENGTHS.values() for pair in task}
    assert {document["max_tokens"] for document in first if document} <= {out for _, out in pairs}
    for document in filter(None, first):
        possible = [n for n, out in pairs if out == document["max_tokens"]]
        assert any(0 <= 5 * n - len(document["prompt"]) <= 22 for n in possible)


def test_errors_are_counted_by_kind() -> None:
    mix, extent = Mix(max_tokens=4), Extent(requests=10)
    with fake_server(key="right") as server:
        assert figures(load(server, mix, extent, 2))["errors"] == {"http 401": 10}
    with fake_server(wrong="truncated") as server:
        assert figures(load(server, mix, extent, 2))["errors"] == {"reset": 2}
    assert figures(load(server, mix, extent, 2))["errors"] == {"refused": 10}
    with fake_server(slots=1, queue=0, prefill_seconds=4.0) as server:
        found = figures(load(server, mix, Extent(requests=5), 5))
        assert found["errors"] == {"http 429": server.counters.rejected} == {"http 429": 4}


@pytest.mark.parametrize(
    ("events", "kind"),
    [
        (b'data: {"choices": [{"text": "a"}]}\n\n', "no [DONE]"),
        (b'data: {"choices": [{"text": "a"}]}\n\ndata: {"error": {}}\n\n', "error frame"),
        (b'data: {"choices": [{"\n\n', "bad json"),
        (b'data: {"choices": [{"text": "a"}]}\n\ndata: [DONE]\n\n', "ok"),
    ],
)
def test_a_stream_without_its_end_is_no_success(events: bytes, kind: str) -> None:
    call = Call(path="/v1/completions", document={"stream": True})
    reply = Reply(call=call, status=200, pieces=[(1.0, events)])
    assert read_reply(reply).kind == kind


def test_a_reply_is_the_same_however_the_network_cuts_it() -> None:
    events = (
        ": ping\n\n"
        'data: {"choices": [{"index": 0, "text": "né"}]}\n\n'
        'data: {"choices": [{"index": 0, "text": ""}]}\r\n\r\n'
        'event: more\ndata: {"choices": [{"index": 0, "text": "b", "finish_reason": "stop"}]}\n\n'
        'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}\n\n'
        "data: [DONE]\n\n"
    ).encode()
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(e), e) for e in (events[:30], events[30:])) + b"0\r\n"
    wire = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks + b"\r\n"
    whole = wire_outcome([wire])
    assert (whole.kind, whole.text, whole.finish_reason) == ("ok", "néb", "stop")
    assert (whole.prompt_tokens, whole.output_tokens, len(whole.arrivals)) == (7, 3, 2)
    for cut in range(1, len(wire)):
        cut_up = wire_outcome([wire[:cut], wire[cut:]])
        assert (cut_up.kind, cut_up.text, cut_up.output_tokens) == ("ok", "néb", 3)


def wire_outcome(parts: list[bytes]) -> Any:
    """What is read from a connection that delivers these parts."""

    async def run() -> Reply:
        connection = Connection()
        connection.connection_made(SilentTransport())
        reply = Reply(call=Call(path="/", document={"stream": True}))
        done = connection.start(reply, b"")
        for part in parts:
            connection.data_received(part)
        assert done.done()
        return reply

    return read_reply(asyncio.run(run()))


class SilentTransport(asyncio.Transport):
    """Takes what is written to it."""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        pass


def test_connections_are_kept_and_replaced_when_the_server_closed_them() -> None:
    call = next(Mix(max_tokens=1).calls())

    async def work(client: Client) -> list[Reply]:
        first = [await client.send(call) for _ in range(5)]
        for connection in client._idle:
            connection._transport.abort()  # as if the server's timeout had come first
        return [*first, await client.send(call)]

    with fake_server() as server:
        replies = with_client(server, work)
        assert [reply.status for reply in replies] == [200] * 6
        assert server.num_connections == 2


def test_a_dropped_request_stops_at_the_server() -> None:
    call = Call(
        path="/v1/completions",
        document={"prompt": "a", "max_tokens": 1000, "stream": True},
        cancel_after=0.15,
    )
    with fake_server(token_seconds=0.01) as server:

        async def work(client: Client) -> Reply:
            reply = await client.send(call)
            await asyncio.sleep(0.1)
            return reply

        outcome = read_reply(with_client(server, work))
        assert outcome.kind == "cancelled"
        assert server.counters.cancelled == 1
        assert 0 <= server.counters.new_tokens - len(outcome.arrivals) <= 12
        assert outcome.text == text_of("a", None, len(outcome.arrivals))


def test_percentiles_and_slope_of_known_numbers() -> None:
    values = [float(n) for n in range(100, 0, -1)]
    assert [percentile(values, p) for p in (1, 50, 95, 99, 100)] == [1, 50, 95, 99, 100]
    assert percentile([], 50) is None
    assert percentile([3.0], 99) == 3.0
    assert slope_per_thousand([(n, 5 + n / 250) for n in range(0, 4000, 100)]) == pytest.approx(4)


def test_every_bad_body_is_one_that_a_server_can_refuse() -> None:
    async def work(client: Client) -> list[Reply]:
        return [await client.send(Call(path="/v1/completions", raw=raw)) for raw in BAD_BODIES]

    with fake_server() as server:
        assert [reply.status for reply in with_client(server, work)] == [400] * len(BAD_BODIES)


def run_mode(name: str, *, free_port: int = 0, **options: Any) -> Verdict:
    """The verdict of a mode on a server with these options."""
    settings: dict[str, Any] = {"slots": 4, "queue": 8, "token_seconds": 0.002} | options
    with fake_server(**settings) as server:

        async def work(client: Client) -> Verdict:
            bench = Bench(client=client, mix=Mix(max_tokens=8, longest=600), scale=SCALE)
            if name == "L10":
                bench.client = Client(Target(host="127.0.0.1", port=free_port))
                bench.start = fake_command(free_port, options)
            try:
                return await serve.MODES[name](bench)
            finally:
                bench.client.close()

        return with_client(server, work)


def fake_command(port: int, options: dict[str, Any]) -> str:
    script = Path(__file__).parents[1] / "fake_completions.py"
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())
    return f"{sys.executable} {script} --port {port} {flags}"


def failed_checks(verdict: Verdict) -> list[str]:
    return [check.name for check in verdict.checks if check.passed is False]


@pytest.fixture
def quick_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_faults, "_HEAD_SECONDS", 1.0)


# What depends on the speed of the machine is left out: a test must hold on a busy one.
PROMISES = {
    "L1": ("no errors, all ended in [DONE]", {"wrong": "truncated"}),
    "L2": ("no errors, all ended in [DONE]", {"wrong": "truncated"}),
    "L3": ("every 429 says when to come back", {"wrong": "no-retry-after"}),
    "L4": ("only whole answers or refusals", {"key": "of another"}),
    "L5": ("no slot and no place in the queue stays taken", {"wrong": "leak"}),
    "L6": ("every bad request refused with 4xx", {"wrong": "500"}),
    "L7": ("same text", {"wrong": "unseeded"}),
    "L8": ("no errors, all ended in [DONE]", {"wrong": "truncated"}),
    "L9": ("half heads closed within 1 s", {"wrong": "patient"}),
    "L10": ("no recompiles", {"wrong": "compiles"}),
    "L11": ("no reply for another text", {"wrong": "stale"}),
}


@pytest.mark.usefixtures("quick_heads")
@pytest.mark.parametrize("mode", PROMISES)
def test_a_mode_tells_a_good_server_from_a_bad_one(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve_users, "_READY_LIMIT_SECONDS", 20.0)
    promise, fault = PROMISES[mode]
    if mode == "L9":
        fault = fault | {"header_seconds": 0.3}
    good = {name: value for name, value in fault.items() if name not in ("wrong", "key")}
    if mode == "L5":
        monkeypatch.setattr(Bench, "seconds_until_idle", brief_wait(Bench.seconds_until_idle))
    kept = run_mode(mode, free_port=free_port(), **good)
    assert promise in [check.name for check in kept.checks if check.passed]
    broken = run_mode(mode, free_port=free_port(), **fault)
    assert promise in failed_checks(broken)
    assert not broken.passed


def brief_wait(method: Callable[..., Any]) -> Callable[..., Any]:
    """As the method, with at most a second of patience."""
    return lambda bench, limit=1.0: method(bench, limit=min(limit, 1.0))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_starting_server_refuses_until_it_is_ready() -> None:
    verdict = run_mode("L10", free_port=free_port(), ready_after=0.7)
    early = next(check for check in verdict.checks if check.name.startswith("before that"))
    assert early.passed
    assert "http 503" in early.said


def test_the_bare_rate_is_compared_where_it_is_given() -> None:
    for rate, passed in ((1.0, True), (1e9, False)):
        with fake_server(token_seconds=0.002) as server:

            async def work(client: Client, rate: float = rate) -> Verdict:
                return await serve.MODES["L1"](
                    Bench(client=client, mix=Mix(max_tokens=8), scale=SCALE, bare_rate=rate)
                )

            checks = with_client(server, work).checks
        assert next(c for c in checks if "bare" in c.name).passed is passed


def test_nothing_judged_is_no_pass() -> None:
    unjudged = Check(name="a", passed=None, said="not given")
    kept, broken = (Check(name="b", passed=p, said="x") for p in (True, False))
    assert not Verdict(mode="L1", title="t", checks=(unjudged,)).passed
    assert Verdict(mode="L1", title="t", checks=(unjudged, kept)).passed
    assert not Verdict(mode="L1", title="t", checks=(kept, broken)).passed
    assert "FAIL" in verdict_table([Verdict(mode="L1", title="t", checks=(kept, broken))])


def test_the_command_writes_json_and_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET_KEY", "sesame")
    with fake_server(key="sesame", name="jay") as server:
        url = f"http://127.0.0.1:{server.port}"
        given = ["--key-env", "SECRET_KEY", "--json", str(tmp_path / "found.json")]
        loads = ["--clients", "1,2", "--requests", "6", "--warm-up", "2", "--max-tokens", "3"]
        assert serve.main([url, *given, *loads]) == 0
        assert "| 2 clients | 6 | 6 | none |" in capsys.readouterr().out
        found = json.loads((tmp_path / "found.json").read_text())
        assert found["mix"]["model"] == "jay"
        assert found["mix"]["longest"] == 1024
        assert found["machine"]["cores"] >= 1
        assert found["loads"]["1 client"]["output_tokens"] == 18
        assert len(server.requests) == 2 * (6 + 2)
        scale = ["--modes", "L7", "--set", "prompts=4,saturating=2", "--max-tokens", "3"]
        assert serve.main([url, *given, *scale]) == 0
        assert json.loads((tmp_path / "found.json").read_text())["modes"][0]["passed"] is True
    assert serve.main([url, "--requests", "2", "--model", "jay"]) == 1


@pytest.mark.parametrize("wrong", [["--modes", "L99"], ["--modes", "L1", "--set", "speed=3"]])
def test_wrong_arguments_are_named(wrong: list[str]) -> None:
    with pytest.raises(SystemExit, match=r"L99|speed"):
        serve.main(["http://127.0.0.1:9", "--model", "m", *wrong])
