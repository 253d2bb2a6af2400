"""What works beside the engine: a bounded queue, tenants in turn, and an end for who has left."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from bluejay.serving.access import make_access
from bluejay.serving.desk import Desk, OneThread
from bluejay.serving.embeddings import embedding_routes
from bluejay.serving.limits import DeskLimits, Limits, WaitLimits
from bluejay.serving.service import TextService
from serving.live_server import PATIENCE, Answer, Raw
from serving.route_server import serve_routes
from serving.table_models import TableEmbedder

JSON = [("Content-Type", "application/json")]
PATH = "/v1/embeddings"


def gated() -> TableEmbedder:
    """One that works on the first text until its gate is opened."""
    return TableEmbedder(gate=threading.Event())


def routes(embedder: TableEmbedder) -> Callable[[TextService], Any]:
    return lambda service: embedding_routes(service, embedder)


def ask(raw: Raw, *ids: int) -> Answer:
    return raw.post(PATH, json.dumps({"input": [[number] for number in ids]}).encode())


def open_gate(embedder: TableEmbedder) -> None:
    assert embedder.gate is not None
    embedder.gate.set()


def test_one_too_many_is_told_when_to_come_again_and_which_flag_it_met() -> None:
    embedder = gated()
    limits = Limits(desk=DeskLimits(embeddings=3), wait=WaitLimits(drain_seconds=0.3))
    with serve_routes(routes(embedder), limits=limits) as client, ThreadPoolExecutor(12) as pool:
        calls = [pool.submit(ask, client.raw, number) for number in range(97, 109)]
        refused = _first_done(calls, 9)
        assert {answer.status for answer in refused} == {429}
        for answer in refused:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.headers["x-should-retry"] == "true"
            message = json.loads(answer.body)["error"]["message"]
            for part in (
                "requests for embeddings",
                "has 3",
                "limit is 3",
                "--max-embedding-requests",
            ):
                assert part in message
        open_gate(embedder)
        statuses = [call.result(PATIENCE).status for call in calls]
        assert statuses.count(200) == 3
        assert ask(client.raw, 97).status == 200


def _first_done(calls: "list[Future[Answer]]", count: int) -> list[Answer]:
    deadline = time.monotonic() + PATIENCE
    while len(done := [call for call in calls if call.done()]) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return [call.result() for call in done]


def test_tenants_take_turns_by_texts() -> None:
    embedder = gated()
    access = make_access("127.0.0.1", keys=["key-a", "key-b"])
    with (
        serve_routes(routes(embedder), access=access) as client,
        ThreadPoolExecutor(2) as pool,
    ):
        many, one = (client.raw.with_defaults(X_API_Key=key) for key in ("key-a", "key-b"))
        first = pool.submit(ask, many, *range(97, 117))
        assert embedder.began.wait(PATIENCE)
        second = pool.submit(ask, one, 65)
        time.sleep(0.3)  # so that it waits by then; if not, it is only later
        open_gate(embedder)
        assert first.result(PATIENCE).status == second.result(PATIENCE).status == 200
    order = [asked["ids"][0] for asked in embedder.asked]
    assert sorted(order) == [65, *range(97, 117)]
    assert order.index(65) < 20, "behind all twenty texts of the other"


def test_who_leaves_while_waiting_is_never_begun_and_frees_the_place() -> None:
    embedder = gated()
    limits = Limits(desk=DeskLimits(embeddings=2), wait=WaitLimits(drain_seconds=0.3))
    with serve_routes(routes(embedder), limits=limits) as client, ThreadPoolExecutor(2) as pool:
        first = pool.submit(ask, client.raw, 97)
        assert embedder.began.wait(PATIENCE)
        with client.raw.connect() as leaving:
            body = b'{"input":[[98]]}'
            leaving.sendall(client.raw.encode("POST", PATH, headers=JSON, body=body))
            time.sleep(0.2)
        deadline = time.monotonic() + PATIENCE
        while b'status="499"' not in client.raw.request("GET", "/metrics").body:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        last = pool.submit(ask, client.raw, 99)
        time.sleep(0.2)
        open_gate(embedder)
        assert first.result(PATIENCE).status == last.result(PATIENCE).status == 200
    assert [asked["ids"] for asked in embedder.asked] == [[97], [99]]


def test_a_turn_that_does_not_come_is_told() -> None:
    embedder = gated()
    limits = Limits(wait=WaitLimits(queue_seconds=0.3, drain_seconds=0.3))
    with serve_routes(routes(embedder), limits=limits) as client, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, client.raw, 97)
        assert embedder.began.wait(PATIENCE)
        late = ask(client.raw, 98)
        open_gate(embedder)
        assert first.result(PATIENCE).status == 200
        assert ask(client.raw, 99).status == 200
    assert late.status == 503
    assert json.loads(late.body)["error"]["code"] == "queue_timeout"
    assert "--queue-timeout" in json.loads(late.body)["error"]["message"]


def test_one_who_leaves_in_the_moment_of_his_turn_does_not_take_it_along() -> None:
    """He is cancelled, and the thread is free, in one turn of the loop: the next one works."""
    gate = threading.Event()

    async def run() -> list[int]:
        desk = Desk(Limits(), "embeddings", OneThread("embeddings"))
        first = asyncio.create_task(desk.turn(gate.wait, tenant="a"))
        leaving = asyncio.create_task(desk.turn(lambda: 2, tenant="b"))
        await asyncio.sleep(0.01)
        gate.set()
        time.sleep(0.2)  # the loop stands still while the thread says that it is free
        leaving.cancel()
        last = asyncio.create_task(desk.turn(lambda: 3, tenant="c"))
        async with asyncio.timeout(PATIENCE):
            return [await first, await last]

    assert asyncio.run(run()) == [True, 3]
