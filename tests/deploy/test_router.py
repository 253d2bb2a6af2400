"""The router's configuration, run by HAProxy in front of two processes, one of which is killed."""

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from serve_http import Call, Client, Reply, Target
from serve_load import Extent, Load, fixed_clients
from serve_replies import read_reply
from serve_requests import Mix

ROOT = Path(__file__).parents[2]
CONFIGURATION = ROOT / "deploy" / "haproxy.cfg"
HAPROXY = shutil.which("haproxy") or shutil.which("haproxy", path="/usr/sbin:/usr/local/sbin")
KEY = "sesame"

pytestmark = pytest.mark.skipif(HAPROXY is None, reason="haproxy is not installed")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(kw_only=True)
class Replica:
    """A server in a process of its own, which can be killed and started again."""

    name: str
    port: int = field(default_factory=free_port)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        script = ROOT / "tests" / "fake_completions.py"
        flags = f"--port {self.port} --name {self.name} --key {KEY} --slots 4 --queue 64"
        command = [sys.executable, str(script), *flags.split(), "--token-seconds", "0.02"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.process.stdout.readline()  # it listens

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(20)
            assert self.process.stdout is not None
            self.process.stdout.close()


@dataclass(kw_only=True)
class Cluster:
    """Two replicas and the router in front of them."""

    replicas: dict[str, Replica]
    router: int
    control: Path

    def tell(self, command: str) -> None:
        """A command for the running router."""
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(self.control))
            line.sendall(command.encode() + b"\n")
            assert line.recv(4096).strip() == b""

    def run(self, work: Callable[[Client], "asyncio.Future[Load]"]) -> Load:
        """The load that `work` makes through the router."""

        async def inside() -> Load:
            client = Client(Target(host="127.0.0.1", port=self.router, key=KEY))
            try:
                return await work(client)
            finally:
                client.close()
                await asyncio.sleep(0.01)

        return asyncio.run(inside())

    def send(self, calls: list[Call]) -> list[Reply]:
        """The replies to these, one after the other."""
        extent = Extent(requests=len(calls))
        return self.run(
            lambda client: asyncio.ensure_future(
                fixed_clients(client, iter(calls), extent, num_clients=1)
            )
        ).replies

    def answers(self) -> bool:
        """Whether the router has a replica to give work to."""
        [reply] = self.send([Mix(streams=False).call("ready?", max_tokens=1, seed=0)])
        return reply.status == 200


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    replicas = {name: Replica(name=name) for name in ("a", "b")}
    control = tmp_path_factory.mktemp("router") / "socket"
    found = Cluster(replicas=replicas, router=free_port(), control=control)
    environment = os.environ | {
        "BLUEJAY_API_KEY": KEY,
        "ROUTER": f"127.0.0.1:{found.router}",
        "ROUTER_SOCKET": str(control),
        "REPLICA_A": f"127.0.0.1:{replicas['a'].port}",
        "REPLICA_B": f"127.0.0.1:{replicas['b'].port}",
    }
    for replica in replicas.values():
        replica.start()
    assert HAPROXY is not None
    command = [HAPROXY, "-db", "-q", "-f", str(CONFIGURATION)]
    router = subprocess.Popen(command, env=environment)
    try:
        wait_for(found.answers)
        wait_for(lambda: served_now(found) == {"a", "b"})
        yield found
    finally:
        router.kill()
        router.wait(20)
        for replica in replicas.values():
            replica.stop()


def wait_for(is_so: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.05)


def server_of(reply: Reply) -> str:
    return reply.headers.get("server", "")


def under_load(cluster: Cluster, streams: bool, harm: Callable[[], None]) -> Load:
    """Twelve clients on eight slots, and `harm` in the middle of it."""

    async def work(client: Client) -> Load:
        mix = Mix(streams=streams, max_tokens=15)
        running = asyncio.ensure_future(
            fixed_clients(client, mix.calls(), Extent(seconds=3.0), num_clients=12)
        )
        await asyncio.sleep(1.0)
        await asyncio.to_thread(harm)
        return await running

    wait_for(lambda: served_now(cluster) == {"a", "b"})
    return cluster.run(lambda client: asyncio.ensure_future(work(client)))


@pytest.mark.parametrize("streams", [False, True])
def test_a_killed_replica_takes_with_it_only_answers_that_had_begun(
    cluster: Cluster, streams: bool
) -> None:
    victim = cluster.replicas["b"]
    try:
        done = under_load(cluster, streams, lambda: victim.signal(signal.SIGKILL))
    finally:
        victim.stop()
        victim.start()
    outcomes = [(reply, read_reply(reply)) for reply in done.replies]
    served = Counter(server_of(reply) for reply, outcome in outcomes if outcome.is_ok)
    assert served["a"] > 0
    assert served["b"] > 0  # it had its share before it died
    broken = [(reply, outcome) for reply, outcome in outcomes if not outcome.is_ok]
    # Clients of the other see nothing, and what had not begun is not lost.
    assert all(server_of(reply) == "b" for reply, _ in broken), broken
    assert all(reply.first_byte and outcome.arrivals for reply, outcome in broken)
    assert len(broken) <= (4 if streams else 0)  # its slots
    wait_for(lambda: "b" in served_now(cluster))


def served_now(cluster: Cluster) -> set[str]:
    mix = Mix(streams=False)
    calls = [mix.call(f"prompt number {n}", max_tokens=1, seed=n) for n in range(12)]
    return {server_of(reply) for reply in cluster.send(calls)}


def test_a_replica_that_is_taken_away_loses_nothing(cluster: Cluster) -> None:
    leaving = cluster.replicas["b"]

    def take_away() -> None:
        cluster.tell("set server replicas/b state drain")
        leaving.signal(signal.SIGTERM)

    done = under_load(cluster, True, take_away)
    assert ended_well(leaving)
    cluster.tell("set server replicas/b state ready")
    assert Counter(outcome.kind for outcome in done.outcomes) == {"ok": len(done.replies)}
    assert {server_of(reply) for reply in done.replies} == {"a", "b"}
    wait_for(lambda: "b" in served_now(cluster))


def test_a_replica_that_ends_by_itself_breaks_no_answer(cluster: Cluster) -> None:
    leaving = cluster.replicas["b"]
    done = under_load(cluster, True, lambda: leaving.signal(signal.SIGTERM))
    assert ended_well(leaving)
    # Until the router has seen that it is not ready, some may be asked to come again.
    assert {outcome.kind for outcome in done.outcomes} <= {"ok", "http 503"}
    assert done.outcomes[-1].is_ok
    wait_for(lambda: "b" in served_now(cluster))


def ended_well(replica: Replica) -> bool:
    """Whether it ends with 0 when what runs has finished; it is started again."""
    assert replica.process is not None
    code = replica.process.wait(20)
    replica.stop()
    replica.start()
    return code == 0


def test_prompts_that_begin_alike_go_to_the_same_replica(cluster: Cluster) -> None:
    wait_for(lambda: served_now(cluster) == {"a", "b"})
    mix, chat = Mix(streams=False), Mix(streams=False, is_chat=True)
    groups = []
    for number in range(12):
        beginning = f"Story {number}. " * 30
        endings = [f"Chapter {chapter}" for chapter in range(4)]
        groups.append([mix.call(beginning + end, max_tokens=1, seed=0) for end in endings])
    talk = [{"role": "system", "content": "brief"}, {"role": "user", "content": "hello"}]
    more = [{"role": "assistant", "content": "hi"}, {"role": "user", "content": "go on"}]
    call = chat.call("", max_tokens=1, seed=0)
    groups.append([with_fields(call, messages=m) for m in (talk, talk + more, talk + more * 3)])
    # Whatever order a client writes its fields in, and whatever else it asks for.
    first = groups[0][0]
    assert first.document is not None
    groups[0] += [
        replace(first, document=dict(reversed(first.document.items()))),
        with_fields(first, temperature=0.1, seed=9),
    ]
    used = [{server_of(reply) for reply in cluster.send(group)} for group in groups]
    assert all(len(servers) == 1 for servers in used), used
    assert set.union(*used) == {"a", "b"}


def with_fields(call: Call, **fields: object) -> Call:
    assert call.document is not None
    return replace(call, document={**call.document, **fields})


def test_one_popular_beginning_does_not_pile_up_on_one_replica(cluster: Cluster) -> None:
    wait_for(lambda: served_now(cluster) == {"a", "b"})
    mix = Mix(streams=False)
    calls = iter([mix.call("Once upon a time " * 40, max_tokens=10, seed=n) for n in range(48)])
    done = cluster.run(
        lambda client: asyncio.ensure_future(
            fixed_clients(client, calls, Extent(requests=48), num_clients=12)
        )
    )
    served = Counter(server_of(reply) for reply in done.replies)
    assert sum(served.values()) == 48
    assert min(served["a"], served["b"]) >= 8, served


def test_a_key_is_passed_on_and_no_other_is_added(cluster: Cluster) -> None:
    call = Mix(streams=False).call("a", max_tokens=1, seed=0)
    good, bad = cluster.send([call, replace(call, key="another")])
    assert (good.status, bad.status) == (200, 401)


def test_when_no_replica_is_ready_clients_are_told_to_come_again(cluster: Cluster) -> None:
    for name in cluster.replicas:
        cluster.tell(f"set server replicas/{name} state maint")
    [reply] = cluster.send([Mix(streams=False).call("a", max_tokens=1, seed=0)])
    for name in cluster.replicas:
        cluster.tell(f"set server replicas/{name} state ready")
    assert reply.status == 503
    assert reply.headers["retry-after"] == "1"
    assert reply.document()["error"]["code"] == "unavailable"
    wait_for(cluster.answers)


def test_the_longest_prompts_fit(cluster: Cluster) -> None:
    mix = Mix(streams=False)
    # The second is sent in escapes of six bytes a letter, more than the router keeps.
    calls = [mix.call(letter * 32_768, max_tokens=1, seed=0) for letter in "aé"]
    assert [reply.status for reply in cluster.send(calls)] == [200, 200]


def test_haproxy_takes_the_file_without_a_warning() -> None:
    assert HAPROXY is not None
    environment = os.environ | {
        "ROUTER": ":1",
        "ROUTER_SOCKET": "/tmp/x",
        "REPLICA_A": "127.0.0.1:2",
        "REPLICA_B": "[::1]:3",
    }
    command = [HAPROXY, "-c", "-f", str(CONFIGURATION)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stdout + done.stderr
