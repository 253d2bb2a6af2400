"""Whatever calls the device of a server can be seen to hang, and warming up cannot."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest

from bluejay.generation.engine_requests import EngineLimits
from bluejay.generation.hidden_states import HiddenStates
from bluejay.generation.pulse import Beat
from bluejay.generation.remembering_runner import RememberingRunner
from bluejay.generation.runner import Runner
from bluejay.kernels.library import cpu_library
from bluejay.runs import typed_model
from bluejay.runs.language_model import load
from bluejay.runs.serving import ModelServer, ServingPlan
from bluejay.serving.hang_watch import HangWatch

NAMES = ("The engine", "What makes embeddings", "What suggests words")


def make_server() -> ModelServer:
    engine = EngineLimits(num_slots=1, context_length=256)
    plan = ServingPlan(name="tiny", created=0, engine=engine)
    return ModelServer(load("bluejay-tiny"), plan)


@pytest.fixture
def server() -> ModelServer:
    return make_server()


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Closed: what waits for it is let go at the end."""
    found = threading.Event()
    yield found
    found.set()


def names_of_hung(server: ModelServer, work: Callable[[], object]) -> list[str]:
    """What hangs, in imagined time, while `work` does not come back."""
    now = 0.0

    def clock() -> float:
        return now

    def run() -> None:
        with suppress(Exception):  # of what comes back with nothing at the end of the test
            work()

    watch = HangWatch(server.pulses, least=10.0, clock=clock)
    threading.Thread(target=run, daemon=True).start()
    while not any(pulse.beat.parts for pulse in server.pulses.values()):
        threading.Event().wait(0.001)
    found = []
    for _ in range(100):
        now += 1.0
        if hang := watch.look():
            found.append(hang.name)
    return sorted(set(found))


def embed(server: ModelServer) -> None:
    server._embedder.embed([1, 2, 3], pooling="mean", tenant="", adapter=None)


def test_embeddings_that_hang_are_named(
    server: ModelServer, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HiddenStates, "pooled", lambda *_, **__: gate.wait())
    assert names_of_hung(server, lambda: embed(server)) == ["What makes embeddings"]


@pytest.mark.parametrize("remembers", [cpu_library() is not None, False])
def test_words_that_hang_are_named(
    gate: threading.Event, monkeypatch: pytest.MonkeyPatch, remembers: bool
) -> None:
    if not remembers:
        monkeypatch.setattr(typed_model, "can_remember", lambda _: False)
    server = make_server()
    words = server._words.of_tenant("")
    prefix = words.start([1, 2, 3])
    place = (RememberingRunner, "_take_steps") if remembers else (Runner, "branch")
    monkeypatch.setattr(*place, lambda *_, **__: gate.wait())
    assert names_of_hung(server, lambda: words.branch(prefix, 5)) == ["What suggests words"]


def test_warming_up_is_no_work_that_could_hang(server: ModelServer) -> None:
    assert tuple(server.pulses) == NAMES
    server._embedder.warm_up()
    for run in server._words.warm_up_runs():
        run()
    assert all(pulse.beat == Beat(0, 0) for pulse in server.pulses.values())
    embed(server)
    assert server.pulses["What makes embeddings"].beat == Beat(1, 0)
