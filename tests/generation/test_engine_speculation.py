"""A request that is alone checks drafts from its own text; its output stays what it was."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from bluejay.generation import speculation
from bluejay.generation.engine import SlotEngine
from bluejay.generation.engine_requests import EngineRequest, Finished
from bluejay.generation.sampling_params import SamplingParams
from bluejay.generation.speculation_length import SIZES, Outlook, PassTimes
from bluejay.kernels.library import cpu_library
from engine_models import LIMITS, Client, expected, prompts_of, running
from speculation_models import runner_of

pytestmark = pytest.mark.skipif(cpu_library() is None, reason="the kernels are not built")
RUNNER = runner_of("gptj")  # its greedy texts run into loops
[PHRASE] = prompts_of([9])
REQUEST = EngineRequest(
    prompts=[PHRASE * 6], max_tokens=200, sampling=SamplingParams(temperature=0)
)


class Checks:
    """What the device was asked to check, and how many ids it gave."""

    def __init__(self, engine: SlotEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.drafted: list[int] = []
        self.chosen: list[int] = []
        original = engine._device.check

        def check(row: Any, drafted: Any, **options: Any) -> Any:
            found = original(row, drafted, **options)
            self.drafted.append(len(drafted))
            self.chosen.append(len(found.ids))
            return found

        monkeypatch.setattr(engine._device, "check", check)


@pytest.fixture(scope="module")
def engine() -> Iterator[SlotEngine]:
    with running(RUNNER) as engine:
        yield engine


@pytest.fixture(autouse=True)
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever can be drafted is checked, whether it pays or not."""

    def largest(outlook: Outlook, times: PassTimes, *, counts_loading: bool) -> int:
        assert not counts_loading  # all programs are there
        longest = min(outlook.room, outlook.remaining)
        return max((size for size in (1, *SIZES) if size <= longest), default=1)

    monkeypatch.setattr(speculation, "choose_size", largest)


@pytest.mark.parametrize(
    "sampling",
    [
        SamplingParams(temperature=0),
        SamplingParams(temperature=0.3, seed=3),
        SamplingParams(temperature=0.5, top_p=0.8, seed=11),
    ],
)
def test_drafts_change_nothing(
    engine: SlotEngine, monkeypatch: pytest.MonkeyPatch, sampling: SamplingParams
) -> None:
    request = replace(REQUEST, sampling=sampling)
    checks = Checks(engine, monkeypatch)
    client = Client(engine, request).wait()
    assert client.tokens == expected(RUNNER, request)
    assert client.ending == Finished(reason="length")
    assert checks.drafted
    assert engine.status().recompiles == 0


def test_right_drafts_give_several_ids_at_once(
    engine: SlotEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written is a loop of a few ids, as greedy texts of such models are."""
    checks = Checks(engine, monkeypatch)
    Client(engine, replace(REQUEST, max_tokens=400)).wait()
    assert max(checks.chosen) == 16
    assert sum(checks.chosen) > 300


def test_company_in_between_and_an_end_by_a_stop_id(
    engine: SlotEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = Checks(engine, monkeypatch)
    others: list[Client] = []
    visit = replace(REQUEST, prompts=prompts_of([20]), max_tokens=15)

    def invite(client: Client, event: object) -> None:
        if len(others) < 4 and len(client.tokens) > 60 * (1 + len(others)):
            others.append(Client(engine, visit))

    whole = expected(RUNNER, replace(REQUEST, max_tokens=400))
    client = Client(engine, replace(REQUEST, max_tokens=400), invite).wait()
    assert client.tokens == whole
    assert others
    for other in others:
        assert other.wait().tokens == expected(RUNNER, visit)
    assert checks.drafted
    late = whole[-1].id
    first = [score.id for score in whole].index(late)
    stopped = replace(REQUEST, max_tokens=400, stop_ids=frozenset({late}))
    assert Client(engine, stopped).wait().tokens == whole[:first]


def test_up_to_the_last_position_of_the_cache() -> None:
    limits = replace(LIMITS, num_slots=2, context_length=256)
    request = replace(REQUEST, max_tokens=256 - len(REQUEST.prompts[0]))
    with running(RUNNER, limits=limits) as engine:
        assert Client(engine, request).wait().tokens == expected(RUNNER, request)
